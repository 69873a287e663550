// The loss while a run goes on: faint points as measured, a smoothed line, the last value named.

import { el, formatCount, svg } from "./_shared.js";

const CHART_HEIGHT = 150;
const CHART_TITLE = "loss, nats per token: dots measured, line smoothed";
const MARGIN = { left: 44, right: 52, top: 22, bottom: 26 };

/** Round numbers that cover [low, high] in about `count` steps, first and last outside or on it. */
export function niceTicks(low, high, count) {
  const span = high > low ? high - low : Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => span / s <= count);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/** Tick texts with as many decimals as their distance needs, and no more. */
export function tickTexts(ticks) {
  const step = Math.abs(ticks[1] - ticks[0]);
  let digits = 0;
  while (digits < 8 && Math.abs(Math.round(step * 10 ** digits) - step * 10 ** digits) > 1e-6) digits += 1;
  return ticks.map((t) => t.toFixed(digits));
}

export function formatLoss(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) < 100 ? value.toFixed(2) : value.toPrecision(4);
}

export function place(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

/** The chart as {node, draw(points, totalSteps), resize(width)}; points are [step, loss, smoothed]. */
export function lossChart() {
  const frame = svg("g", { class: "ll-loss-frame" });
  const raw = svg("path", { class: "ll-loss-raw" });
  const line = svg("path", { class: "ll-loss-line" });
  const dot = svg("circle", { class: "ll-loss-dot", r: 3, visibility: "hidden" });
  const last = svg("text", { class: "ll-loss-last" });
  const hair = svg("line", { class: "ll-loss-hair", visibility: "hidden" });
  const note = svg("text", { class: "ll-loss-note", "text-anchor": "middle" });
  const title = svg("text", { x: 0, y: 11, text: CHART_TITLE });
  const node = svg(
    "svg",
    { class: "ll-loss", height: CHART_HEIGHT, role: "img", "aria-label": "loss by step" },
    title, frame, hair, raw, line, dot, last, note,
  );
  const bottom = CHART_HEIGHT - MARGIN.bottom;
  let width = 400;
  let points = [];
  let total = 0;
  let x = () => 0;

  const redraw = () => {
    const right = width - MARGIN.right;
    const known = points.filter(([, loss]) => loss !== null);
    // The smoothed values are means of these, so they lie between them.
    const values = known.map(([, loss]) => loss);
    const ys = known.length ? niceTicks(Math.min(...values), Math.max(...values), 4) : [0, 1, 2, 3, 4];
    const end = Math.max(total, points.at(-1)?.[0] ?? 0, 1);
    const xs = niceTicks(0, end, Math.max(2, Math.floor(width / 90))).filter((t) => t <= end && t % 1 === 0);
    x = (step) => MARGIN.left + (step / end) * (right - MARGIN.left);
    const [low, high] = [ys[0], ys.at(-1)];
    const y = (loss) => bottom - ((loss - low) / (high - low)) * (bottom - MARGIN.top);
    const at = ([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;
    const yTexts = known.length ? tickTexts(ys) : ys.map(() => "");
    frame.replaceChildren(
      ...ys.flatMap((t, i) => [
        svg("line", { class: i ? "ll-loss-grid" : "ll-loss-axis", x1: MARGIN.left, x2: right, y1: y(t), y2: y(t) }),
        svg("text", { x: MARGIN.left - 7, y: y(t) + 3.5, "text-anchor": "end", text: yTexts[i] }),
      ]),
      ...xs.map((t) => svg("text", { x: x(t), y: bottom + 15, "text-anchor": "middle", text: formatCount(t) })),
      svg("text", { x: width, y: bottom + 15, "text-anchor": "end", text: "step" }),
    );
    raw.setAttribute("d", known.map((p) => `M${at(p)}h0`).join(""));
    const smooth = points.filter((p) => p[2] !== null).map(([step, , mean]) => [step, mean]);
    line.setAttribute("d", smooth.map((p, i) => `${i ? "L" : "M"}${at(p)}`).join(""));
    const tip = smooth.at(-1);
    dot.setAttribute("visibility", tip ? "visible" : "hidden");
    last.textContent = tip ? formatLoss(tip[1]) : "";
    if (tip) {
      place(dot, { cx: x(tip[0]), cy: y(tip[1]) });
      place(last, { x: x(tip[0]) + 8, y: y(tip[1]) + 4 });
    }
    note.textContent = points.length ? "" : "the loss shows with the first step";
    place(note, { x: (MARGIN.left + right) / 2, y: (MARGIN.top + bottom) / 2 + 4 });
    place(node, { width, viewBox: `0 0 ${width} ${CHART_HEIGHT}` });
  };

  const point = (event) => {
    if (!points.length) return;
    const left = event.clientX - node.getBoundingClientRect().left;
    const near = points.reduce((a, b) => (Math.abs(x(b[0]) - left) < Math.abs(x(a[0]) - left) ? b : a));
    place(hair, { x1: x(near[0]), x2: x(near[0]), y1: MARGIN.top, y2: bottom, visibility: "visible" });
    title.textContent = `step ${formatCount(near[0])}: loss ${formatLoss(near[1])}, smoothed ${formatLoss(near[2])}`;
  };
  const leave = () => {
    hair.setAttribute("visibility", "hidden");
    title.textContent = CHART_TITLE;
  };
  node.addEventListener("pointermove", point);
  node.addEventListener("pointerdown", point);
  node.addEventListener("pointerleave", leave);

  return {
    node,
    draw(newPoints, totalSteps) {
      points = newPoints;
      total = totalSteps;
      redraw();
    },
    resize(newWidth) {
      if (newWidth < 1 || newWidth === width) return;
      width = newWidth;
      redraw();
    },
  };
}

/** The same for screen readers: at most about twenty rows, evenly spaced, the newest among them. */
export function lossTable() {
  const body = el("tbody");
  const head = el("tr", {}, el("th", { text: "step" }), el("th", { text: "loss, nats per token" }));
  const table = el("table", {}, el("caption", { text: "Loss by step" }), el("thead", {}, head), body);
  const node = el("div", { class: "ll-sr" }, table); // a table takes no height smaller than its rows
  return {
    node,
    draw(points) {
      const every = Math.ceil(points.length / 20) || 1;
      const rows = points.filter((_, i) => (points.length - 1 - i) % every === 0);
      body.replaceChildren(
        ...rows.map(([step, loss]) => el("tr", {}, el("td", { text: step }), el("td", { text: formatLoss(loss) }))),
      );
    },
  };
}
