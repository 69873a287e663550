// The grids of this page, by bench: what is started takes along the ranks that people see, as the
// grid's own message may still wait for a busy kernel. Each panel's module is a copy of its own, so
// they meet on the window.

export const GRIDS = (globalThis[Symbol.for("lora-lab:grids")] ??= new Map());

/** {ranks} for a message that starts something; {} where the page has no grid of this bench. */
export function shownRanks(bench) {
  const grid = GRIDS.get(bench);
  return grid ? { ranks: { ...grid.ranks } } : {};
}
