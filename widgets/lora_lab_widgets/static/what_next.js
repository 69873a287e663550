// @ts-check
// What to do when a run is over: the panels that show, try and keep what it has learned.

import { button, el } from "./_shared.js";

/** @type {[text: string, place: string, command?: string][]} */
const NEXT = [
  ["look into ΔW", ".ll-delta-head"], ["try it", ".ll-try"], ["save it", ".ll-keep", "keep"],
];

/**
 * {node, draw(learned)}: leads to other panels of the workbench around `root`.
 * @param {() => HTMLElement} root
 * @param {(name: string) => void} command sends a command of the run's, so that what is led to
 *   shows this run
 */
export function whatNext(root, command) {
  const placeOf = (place) =>
    /** @type {HTMLElement | null} */ (root().closest(".ll-workbench")?.querySelector(place));
  const links = NEXT.map(([text, place, name]) => button(text, () => {
    if (name) command(name);
    const target = placeOf(place);
    target?.scrollIntoView({ block: "center" });
    /** @type {NodeListOf<HTMLElement> | undefined} */
    const controls = target?.querySelectorAll(":is(button, textarea, select):enabled");
    const first = [...(controls ?? [])].find((node) => node.getClientRects().length > 0);
    first?.focus({ preventScroll: true });
  }, { class: "ll-button ll-next-link" }));
  const node = el("span", { class: "ll-next", hidden: true }, "next:", ...links);
  const draw = (learned) => {
    const found = NEXT.map(([, place]) => learned && placeOf(place) !== null);
    for (const [i, link] of links.entries()) link.hidden = !found[i];
    node.hidden = !found.some(Boolean);
  };
  return { node, draw };
}
