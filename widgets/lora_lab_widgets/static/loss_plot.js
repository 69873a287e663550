// @ts-check
// What the charts of losses share: a frame with axes, of a width that follows the page.

import { formatCount, setAttributes, svg } from "./_shared.js";

const MARGIN = { left: 44, top: 22, bottom: 26 };
const MOST_DECIMALS = 3; // that the left margin has room for

export class LossPlot {
  /**
   * @param {{height: number, width: number, right: number}} size before the page says its width;
   *   `right` is the margin there
   * @param {string} title
   * @param {object} attributes of the node
   */
  constructor({ height, width, right }, title, attributes) {
    this.height = height;
    this.width = width;
    this.right = right;
    this.title = svg("text", { x: 0, y: 11, text: title });
    this.frame = svg("g", { class: "ll-loss-frame" });
    this.node = svg("svg", { height, role: "img", ...attributes }, this.title, this.frame);
  }

  resize(width) {
    if (width < 1 || width === this.width) return;
    this.width = width;
    this.redraw();
  }

  /** Draw what a subclass has to show. */
  redraw() {}

  /**
   * Draw the axes: steps to `end`, losses around `values`, or lines as at `blank` without any.
   * Returns where a step and a loss lie.
   * @param {number} end
   * @param {number[]} values
   * @param {number} count about how many steps the losses' axis has
   * @param {number[]} blank
   */
  drawAxes(end, values, count, blank) {
    const { width, height } = this;
    const bottom = height - MARGIN.bottom;
    const right = width - this.right;
    const known = values.length > 0;
    const ys = known ? niceTicks(Math.min(...values), Math.max(...values), count) : blank;
    const xs = niceTicks(0, end, Math.max(2, Math.floor(width / 90)));
    const [low, high] = [ys[0], ys.at(-1)];
    const x = (step) => MARGIN.left + (step / end) * (right - MARGIN.left);
    const y = (loss) => bottom - ((loss - low) / (high - low)) * (bottom - MARGIN.top);
    const texts = known ? tickTexts(ys) : ys.map(() => "");
    const text = (attributes) => svg("text", { y: bottom + 15, ...attributes });
    this.frame.replaceChildren(
      ...ys.flatMap((t, i) => [
        svg("line", {
          class: i ? "ll-loss-grid" : "ll-loss-axis",
          x1: MARGIN.left, x2: right, y1: y(t), y2: y(t),
        }),
        text({ x: MARGIN.left - 7, y: y(t) + 3.5, "text-anchor": "end", text: texts[i] }),
      ]),
      ...xs.filter((t) => t <= end && t % 1 === 0)
        .map((t) => text({ x: x(t), "text-anchor": "middle", text: formatCount(t) })),
      text({ x: width, "text-anchor": "end", text: "step" }),
    );
    setAttributes(this.node, { width, viewBox: `0 0 ${width} ${height}` });
    const at = (step, loss) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`;
    const middle = { x: (MARGIN.left + right) / 2, y: (MARGIN.top + bottom) / 2 };
    return { x, y, at, middle, top: MARGIN.top, bottom };
  }
}

/** Round numbers that cover [low, high] in about `count` steps, first and last outside or on it. */
function niceTicks(low, high, count) {
  const span = high > low ? high - low : Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => span / s <= count);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/**
 * Tick texts with as many decimals as their distance needs, and no more; powers of ten where small
 * numbers would be wider than their margin.
 */
function tickTexts(ticks) {
  const step = Math.abs(ticks[1] - ticks[0]);
  const isWhole = (n) => Math.abs(Math.round(n) - n) <= 1e-6;
  let digits = 0;
  while (digits < 8 && !isWhole(step * 10 ** digits)) digits += 1;
  const isSmall = ticks.every((t) => Math.abs(t) < 0.01);
  if (digits <= MOST_DECIMALS || !isSmall) return ticks.map((t) => t.toFixed(digits));
  const short = (t) => String(Number(t.toPrecision(6)).toExponential()).replace("e+0", "");
  return ticks.map((t) => (Math.abs(t) < step / 2 ? "0" : short(t)));
}

export function formatLoss(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size > 0 && size < 0.005) return value.toExponential(1); // not "0.00"
  return size < 100 ? value.toFixed(2) : value.toPrecision(4);
}
