// @ts-check
// The grids of this page, by bench: what is started takes along the ranks that people see, as the
// grid's own message may still wait for a busy kernel. Each panel's module is a copy of its own, so
// they meet on the window.

const KEY = Symbol.for("lora-lab:grids");
globalThis[KEY] ??= new Map();
/** @type {Map<string, {ranks: Record<string, number>}>} */
export const GRIDS = globalThis[KEY];

/** {ranks} for a message that starts something; {} where the page has no grid of this bench. */
export function shownRanks(bench) {
  const grid = GRIDS.get(bench);
  return grid ? { ranks: { ...grid.ranks } } : {};
}
