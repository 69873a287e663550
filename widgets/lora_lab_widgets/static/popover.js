// @ts-check
// What opens over the page, beside a node: no edge cuts it off, and nothing moves for it. It is
// never modal: the page can be used meanwhile.

import { el } from "./_shared.js";

const GAP = 6; // pixels between it and the node, and between it and the page's edge

/** Make one; `showPopover` opens it, `hidePopover` closes it. */
export function popover(attributes, ...children) {
  return el("div", {
    popover: "manual", role: "dialog", tabindex: -1, ...attributes,
    class: `ll-popover ${attributes.class ?? ""}`.trim(),
  }, ...children);
}

/**
 * Place one that is open below a node, or above it where there is more room.
 * @param {HTMLElement} text
 * @param {Element} node
 */
export function placeBeside(text, node) {
  const box = node.getBoundingClientRect();
  const { clientWidth: width, clientHeight: height } = document.documentElement;
  text.style.maxHeight = `${height - 2 * GAP}px`;
  const { offsetWidth, offsetHeight } = text;
  const below = box.bottom + GAP;
  const above = box.top - GAP - offsetHeight;
  const goesBelow = below + offsetHeight + GAP <= height || above < GAP;
  const top = goesBelow ? Math.min(below, height - GAP - offsetHeight) : above;
  const left = Math.min(box.left - GAP, width - GAP - offsetWidth);
  text.style.top = `${Math.max(GAP, top)}px`;
  text.style.left = `${Math.max(GAP, left)}px`;
}
