// @ts-check
// The memory of each device of a model that lies on several: now, and at its peak.

import { el, formatBytes } from "./_shared.js";

/** A list with a line a device; nothing where a model lies on one. */
export function deviceList() {
  const node = el("ul", { class: "ll-run-devices ll-dim", "aria-label": "memory by device" });
  return { node, draw: (devices) => draw(node, devices) };
}

function draw(node, devices) {
  node.hidden = !devices.length;
  const largest = Math.max(1, ...devices.map(({ peak }) => peak));
  const bar = (name, bytes) => {
    const part = el("i", { class: `ll-run-device-${name}` });
    part.style.width = `${(100 * bytes) / largest}%`;
    return part;
  };
  node.replaceChildren(...devices.map(({ name, current, peak }) => el("li", {},
    el("span", { text: name }),
    el("span", { class: "ll-run-device", "aria-hidden": "true" },
      bar("peak", peak), bar("now", current)),
    el("span", { text: `${formatBytes(current)} now · ${formatBytes(peak)} at its peak` }))));
}
