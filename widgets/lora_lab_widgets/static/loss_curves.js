// The losses of up to six runs on one chart; told apart by number and dashes too, never by colour
// alone. Uses the ticks of the run's own chart.

import { formatCount, svg } from "./_shared.js";
import { formatLoss, niceTicks, place, tickTexts } from "./loss_chart.js";

const CURVES_HEIGHT = 210;
const CURVES_MARGIN = { left: 44, right: 44, top: 22, bottom: 26 };

/** The mark that a curve has in the chart and in the table beside it. */
export function curveMark(index) {
  return svg("svg", { class: `ll-curve ll-curve-${index}`, width: 26, height: 8, "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 25, y1: 4, y2: 4 }));
}

/** {node, draw([{label, points}]), resize(width)}; points are [step, loss, smoothed]. */
export function lossCurves() {
  const frame = svg("g", { class: "ll-loss-frame" });
  const lines = svg("g");
  const names = svg("g");
  const title = svg("text", { x: 0, y: 11, text: "loss by step, nats per token, smoothed" });
  const node = svg("svg", { class: "ll-loss ll-loss-curves", height: CURVES_HEIGHT, role: "img" }, title, frame, lines, names);
  const bottom = CURVES_HEIGHT - CURVES_MARGIN.bottom;
  let width = 500;
  let curves = [];

  const redraw = () => {
    const right = width - CURVES_MARGIN.right;
    const smooth = curves.map(({ points }) => points.filter((p) => p[2] !== null));
    const values = smooth.flat().map((p) => p[2]);
    const ys = values.length ? niceTicks(Math.min(...values), Math.max(...values), 5) : [0, 1];
    const end = Math.max(1, ...smooth.map((points) => points.at(-1)?.[0] ?? 0));
    const xs = niceTicks(0, end, Math.max(2, Math.floor(width / 90))).filter((t) => t <= end && t % 1 === 0);
    const x = (step) => CURVES_MARGIN.left + (step / end) * (right - CURVES_MARGIN.left);
    const [low, high] = [ys[0], ys.at(-1)];
    const y = (loss) => bottom - ((loss - low) / (high - low)) * (bottom - CURVES_MARGIN.top);
    const texts = values.length ? tickTexts(ys) : ys.map(() => "");
    frame.replaceChildren(
      ...ys.flatMap((t, i) => [
        svg("line", { class: i ? "ll-loss-grid" : "ll-loss-axis", x1: CURVES_MARGIN.left, x2: right, y1: y(t), y2: y(t) }),
        svg("text", { x: CURVES_MARGIN.left - 7, y: y(t) + 3.5, "text-anchor": "end", text: texts[i] }),
      ]),
      ...xs.map((t) => svg("text", { x: x(t), y: bottom + 15, "text-anchor": "middle", text: formatCount(t) })),
      svg("text", { x: width, y: bottom + 15, "text-anchor": "end", text: "step" }),
    );
    lines.replaceChildren(...smooth.map((points, i) => svg("path", {
      class: `ll-curve ll-curve-${i}`,
      d: points.map((p, k) => `${k ? "L" : "M"}${x(p[0]).toFixed(1)},${y(p[2]).toFixed(1)}${points.length < 2 ? "h1" : ""}`).join(""),
    })));
    // Each number at its curve's end; those that would cover each other move up.
    const ends = smooth.map((points, i) => ({ i, tip: points.at(-1) })).filter(({ tip }) => tip)
      .map(({ i, tip }) => ({ i, x: x(tip[0]) + 6, y: y(tip[2]) + 4 })).sort((a, b) => b.y - a.y);
    ends.forEach((each, k) => {
      const below = ends.slice(0, k).filter((other) => Math.abs(other.x - each.x) < 16);
      each.y = Math.min(each.y, ...below.map((other) => other.y - 12));
    });
    ends.sort((a, b) => a.i - b.i);
    names.replaceChildren(...ends.map((each) => svg("text", { class: `ll-curve-name ll-curve-${each.i}`, x: each.x, y: each.y, text: each.i + 1 })));
    place(node, { width, viewBox: `0 0 ${width} ${CURVES_HEIGHT}` });
    const spoken = curves.map(({ label }, i) => `${i + 1}: ${label}, at the end ${formatLoss(smooth[i].at(-1)?.[2])}`);
    node.setAttribute("aria-label", `loss by step. ${spoken.join("; ")}`);
  };
  return {
    node,
    draw(newCurves) {
      curves = newCurves;
      redraw();
    },
    resize(newWidth) {
      if (newWidth < 1 || newWidth === width) return;
      width = newWidth;
      redraw();
    },
  };
}
