// @ts-check
// The workbench's title line. Texts are names from outside: textContent only.

import { PanelView, el, panel } from "./_shared.js";

class HeaderView extends PanelView {
  build() {
    return el("div", { class: "ll-panel ll-header" });
  }

  follow() {
    this.watch(() => this.draw(), "chips", "device", "others");
  }

  draw() {
    const { model } = this;
    const device = [model.get("device"), model.get("others")].filter(Boolean).join(" · ");
    this.root.replaceChildren(
      el("b", { class: "ll-header-title", text: "LoRA Lab" }),
      ...model.get("chips").map((text) => el("span", { class: "ll-chip", text })),
      el("span", { class: "ll-header-device ll-dim", text: device }),
    );
  }
}

export default panel(HeaderView);
