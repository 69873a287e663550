// The workbench's title line. Texts are names from outside: textContent only.

import { el, listen } from "./_shared.js";

function render({ model, el: host, signal }) {
  const line = el("div", { class: "ll-panel ll-header" });
  const draw = () => {
    const device = [model.get("device"), model.get("others")].filter(Boolean).join(" · ");
    line.replaceChildren(
      el("b", { class: "ll-header-title", text: "LoRA Lab" }),
      ...model.get("chips").map((text) => el("span", { class: "ll-chip", text })),
      el("span", { class: "ll-header-device ll-dim", text: device }),
    );
  };
  const unlisten = listen(model, {
    "change:chips": draw,
    "change:device": draw,
    "change:others": draw,
  });
  draw();
  host.replaceChildren(line);
  signal?.addEventListener("abort", unlisten);
  return unlisten;
}

export default { render };
