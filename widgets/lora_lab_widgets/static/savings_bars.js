// @ts-check
// Memory as bars of four parts, and as a table for screen readers.

import { el, formatBytes } from "./_shared.js";
import { PARTS, totalOf } from "./savings_price.js";

export function barRow(label, pieces, empty) {
  const segments = Object.fromEntries(pieces.map((piece) =>
    [piece, el("i", { class: `ll-savings-seg ll-savings-${piece}`, hidden: true })]));
  const track = el("div", { class: "ll-savings-track" }, ...Object.values(segments));
  const value = el("span", { class: "ll-num", text: empty });
  const source = el("span", { class: "ll-savings-source", text: "" });
  const node = el("div", { class: "ll-savings-row", "aria-hidden": "true" },
    el("span", { text: label }), track, value, source);
  return { node, track, segments, value, source, memory: null };
}

/** Draw {piece: bytes}, or nothing, on a scale that reaches its end at `scale` bytes. */
export function drawBar(row, sizes, scale) {
  for (const [piece, segment] of Object.entries(row.segments)) {
    const bytes = sizes?.[piece] ?? 0;
    segment.hidden = !(bytes > 0);
    segment.style.width = `${scale ? (100 * bytes) / scale : 0}%`;
  }
}

/** The bytes of one part: activations need no room of their own where gradients take more. */
export function formatPart(memory, part) {
  const within = part === "activations" && memory.activations === 0 && memory.gradients > 0;
  return within ? "within gradients" : formatBytes(memory[part]);
}

/** The nodes of a table of [name, memory or null], exact bytes at each cell. */
export function memoryTable(rows) {
  const cells = (memory) =>
    [...PARTS, "total"].map((part) => {
      if (!memory) return el("td", { text: "none" });
      const bytes = part === "total" ? totalOf(memory) : memory[part];
      const text = part === "total" ? formatBytes(bytes) : formatPart(memory, part);
      return el("td", { "data-ll-bytes": bytes, text });
    });
  const heads = ["plan", ...PARTS, "total"].map((part) => el("th", { scope: "col", text: part }));
  return [
    el("caption", { text: "Peak memory of a training step" }),
    el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, ...rows.map(([name, memory]) =>
      el("tr", {}, el("th", { scope: "row", text: name }), ...cells(memory)))),
  ];
}
