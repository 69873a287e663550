// @ts-check
// A row of short texts that breaks between two of them only.

import { el } from "./_shared.js";

/**
 * Texts with "·" between them; a line breaks between two, not within one.
 * @param {string[]} texts
 */
export function unbroken(texts) {
  const last = texts.length - 1;
  return texts.flatMap((text, i) =>
    [el("span", { class: "ll-unbroken", text: i < last ? `${text} ·` : text }), " "]).slice(0, -1);
}
