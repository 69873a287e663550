// @ts-check
// The losses of up to six runs on one chart; told apart by number and dashes too, never by color
// alone.

import { svg } from "./_shared.js";
import { LossPlot, formatLoss } from "./loss_plot.js";

const CURVES_SIZE = { height: 210, width: 500, right: 44 };

/** The mark that a curve has in the chart and in the table beside it. */
export function curveMark(index) {
  return svg("svg", {
    class: `ll-curve ll-curve-${index}`, width: 26, height: 8, "aria-hidden": "true",
  }, svg("line", { x1: 1, x2: 25, y1: 4, y2: 4 }));
}

export class LossCurves extends LossPlot {
  constructor() {
    super(CURVES_SIZE, "", {
      class: "ll-loss ll-loss-curves",
    });
    /** @type {{label: string, points: [step: number, loss: number, smoothed: number][]}[]} */
    this.curves = [];
    this.lines = svg("g");
    this.names = svg("g");
    this.node.append(this.lines, this.names);
  }

  draw(curves, unit) {
    this.title.textContent = ["loss by step", unit, "smoothed"].filter(Boolean).join(", ");
    this.curves = curves;
    this.redraw();
  }

  redraw() {
    const smooth = this.curves.map(({ points }) =>
      points.filter((point) => point[2] !== null).map(([step, , mean]) => [step, mean]));
    const end = Math.max(1, ...smooth.map((points) => points.at(-1)?.[0] ?? 0));
    const { x, y, at } = this.drawAxes(end, smooth.flat().map(([, mean]) => mean), 5, [0, 1]);
    this.lines.replaceChildren(...smooth.map((points, i) => {
      const path = points.map(([step, mean], k) => `${k ? "L" : "M"}${at(step, mean)}`);
      if (points.length === 1) path.push("h1"); // else nothing is drawn
      return svg("path", { class: `ll-curve ll-curve-${i}`, d: path.join("") });
    }));
    this.drawNumbers(smooth.flatMap((points, i) =>
      points.slice(-1).map(([step, mean]) => ({ i, x: x(step) + 6, y: y(mean) + 4 }))));
    const spoken = this.curves.map(({ label }, i) =>
      `${i + 1}: ${label}, at the end ${formatLoss(smooth[i].at(-1)?.[1])}`);
    this.node.setAttribute("aria-label", `loss by step. ${spoken.join("; ")}`);
  }

  /** Each number at its curve's end; those that would cover each other move up. */
  drawNumbers(ends) {
    const upwards = [...ends].sort((a, b) => b.y - a.y);
    upwards.forEach((each, k) => {
      const near = upwards.slice(0, k).filter((other) => Math.abs(other.x - each.x) < 16);
      each.y = Math.min(each.y, ...near.map((other) => other.y - 12));
    });
    this.names.replaceChildren(...ends.map(({ i, x, y }) =>
      svg("text", { class: `ll-curve-name ll-curve-${i}`, x, y, text: i + 1 })));
  }
}
