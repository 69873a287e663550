// @ts-check
// The loss while a run goes on: faint points as measured, a smoothed line, the last value named.

import { el, formatCount, setAttributes, svg } from "./_shared.js";
import { LossPlot, formatLoss } from "./loss_plot.js";

const CHART_SIZE = { height: 150, width: 400, right: 60 };

export class LossChart extends LossPlot {
  constructor() {
    super(CHART_SIZE, "", {
      class: "ll-loss", "aria-label": "loss by step: dots as measured, the line smoothed",
    });
    /** @type {[step: number, loss: number | null, smoothed: number | null][]} */
    this.points = [];
    this.total = 0;
    /** @type {[step: number, loss: number | null][]} */
    this.heldOut = [];
    /** @type {[step: number, share: number][]} */
    this.schedule = [];
    this.started = false;
    this.heading = "";
    this.axes = null;
    this.rates = svg("path", { class: "ll-loss-rates" });
    this.held = svg("path", { class: "ll-loss-held" });
    this.marks = svg("path", { class: "ll-loss-held-marks" });
    this.raw = svg("path", { class: "ll-loss-raw" });
    this.line = svg("path", { class: "ll-loss-line" });
    this.dot = svg("circle", { class: "ll-loss-dot", r: 3, visibility: "hidden" });
    this.last = svg("text", { class: "ll-loss-last" });
    this.kind = svg("text", { class: "ll-loss-kind" });
    this.hair = svg("line", { class: "ll-loss-hair", visibility: "hidden" });
    this.note = svg("text", { class: "ll-loss-note", "text-anchor": "middle" });
    this.node.append(this.rates, this.hair, this.raw, this.held, this.marks, this.line);
    this.node.append(this.dot, this.last, this.kind, this.note);
    this.node.addEventListener("pointermove", (event) => this.point(event));
    this.node.addEventListener("pointerdown", (event) => this.point(event));
    this.node.addEventListener("pointerleave", () => {
      this.hair.setAttribute("visibility", "hidden");
      this.title.textContent = this.heading;
    });
  }

  /**
   * @param {[number, number | null, number | null][]} points
   * @param {number} totalSteps
   * @param {string} unit
   * @param {[number, number | null][]} heldOut measured while it trained
   * @param {[number, number][]} schedule of the learning rate, as shares of its peak
   * @param {boolean} started whether the points are on their way
   */
  draw(points, totalSteps, unit, heldOut = [], schedule = [], started = false) {
    const held = heldOut.length ? " · squares held-out" : "";
    const rates = schedule.length ? " · dashes learning rate" : "";
    const heading = `training loss, ${unit}${held}${rates}`;
    this.heldOut = heldOut;
    this.schedule = schedule;
    this.started = started;
    if (this.heading !== heading) this.title.textContent = this.heading = heading;
    this.points = points;
    this.total = totalSteps;
    this.redraw();
  }

  redraw() {
    const { points, dot, last, note } = this;
    const measured = points.filter(([, loss]) => loss !== null);
    const end = Math.max(this.total, points.at(-1)?.[0] ?? 0, 1);
    // The smoothed values are means of these, so they lie between them.
    const kept = this.heldOut.filter(([, loss]) => loss !== null);
    const losses = [...measured, ...kept].map(([, loss]) => loss);
    this.axes = this.drawAxes(end, losses, 4, [0, 1, 2, 3, 4]);
    const { x, y, at, middle, top, bottom } = this.axes;
    const line = (places) => places.map((place, i) => `${i ? "L" : "M"}${place}`).join("");
    const rate = ([step, share]) =>
      `${x(step).toFixed(1)},${(bottom - share * (bottom - top)).toFixed(1)}`;
    this.rates.setAttribute("d", line(this.schedule.map(rate)));
    this.held.setAttribute("d", line(kept.map(([step, loss]) => at(step, loss))));
    this.marks.setAttribute("d", kept.map(([step, loss]) => `M${at(step, loss)}h0`).join(""));
    this.raw.setAttribute("d", measured.map(([step, loss]) => `M${at(step, loss)}h0`).join(""));
    const smooth = points.filter(([, , mean]) => mean !== null);
    const path = smooth.map(([step, , mean], i) => `${i ? "L" : "M"}${at(step, mean)}`);
    this.line.setAttribute("d", path.join(""));
    const tip = smooth.at(-1);
    dot.setAttribute("visibility", tip ? "visible" : "hidden");
    last.textContent = tip ? formatLoss(tip[2]) : "";
    this.kind.textContent = tip ? "smoothed" : "";
    if (tip) {
      const [step, , mean] = tip;
      setAttributes(dot, { cx: x(step), cy: y(mean) });
      setAttributes(last, { x: x(step) + 8, y: y(mean) + 4 });
      setAttributes(this.kind, { x: x(step) + 8, y: y(mean) - 8 });
    }
    const empty = `the loss shows here, step by step${this.started ? "" : ": press Start"}`;
    note.textContent = points.length ? "" : empty;
    setAttributes(note, { x: middle.x, y: middle.y + 4 });
  }

  /** Read the point out that is nearest to the pointer. */
  point(event) {
    const { points } = this;
    if (!points.length) return;
    const { x, top, bottom } = this.axes;
    const left = event.clientX - this.node.getBoundingClientRect().left;
    const distance = (point) => Math.abs(x(point[0]) - left);
    const near = points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    const [step, loss, smoothed] = near;
    const at = x(step);
    setAttributes(this.hair, { x1: at, x2: at, y1: top, y2: bottom, visibility: "visible" });
    const both = `training loss ${formatLoss(loss)}, smoothed ${formatLoss(smoothed)}`;
    this.title.textContent = `step ${formatCount(step)}: ${both}`;
  }
}

/** The same for screen readers: at most about twenty rows, evenly spaced, the newest among them. */
export function lossTable() {
  const body = el("tbody");
  const loss = el("th");
  const head = el("tr", {}, el("th", { text: "step" }), loss);
  const caption = el("caption", { text: "Loss by step" });
  const table = el("table", {}, caption, el("thead", {}, head), body);
  const node = el("div", { class: "ll-sr" }, table); // a table itself would not shrink to a pixel
  const draw = (points, unit) => {
    loss.textContent = `loss, ${unit}`;
    const every = Math.ceil(points.length / 20) || 1;
    const rows = points.filter((_, i) => (points.length - 1 - i) % every === 0);
    body.replaceChildren(...rows.map(([step, value]) =>
      el("tr", {}, el("td", { text: step }), el("td", { text: formatLoss(value) }))));
  };
  return { node, draw };
}
