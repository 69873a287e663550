// @ts-check
// The workbench's title line. Texts are names from outside: textContent only.

import { PanelView, button, el, panel } from "./_shared.js";
import { term } from "./term.js";
import { Tour } from "./tour.js";

class HeaderView extends PanelView {
  build() {
    this.title = el("b", { class: "ll-header-title", text: "LoRA Lab" });
    this.chips = el("span", { class: "ll-header-chips" });
    this.change = button("Change…", () => this.model.send({ type: "choose" }), {
      "aria-label": "change the model or the data", title: "another model, or other data",
    });
    this.device = el("span", { class: "ll-header-device ll-dim" });
    const root = el("div", { class: "ll-panel ll-header" });
    this.tour = new Tour(root);
    this.closers.push(() => this.tour.close());
    root.append(this.title, this.chips, term(["base-model", "lora", "task", "synthetic"]),
      this.change, this.tour.node,
      el("span", { class: "ll-header-end ll-caption" }, this.device, term(["device", "dtype"])));
    return root;
  }

  follow() {
    this.watch(() => this.draw(), "chips", "device", "others");
    this.watchSize(() => this.tour.draw()); // by then it stands in its workbench
  }

  draw() {
    const { model } = this;
    const device = [model.get("device"), model.get("others")].filter(Boolean).join(" · ");
    this.chips.replaceChildren(
      ...model.get("chips").map((text) => el("span", { class: "ll-chip", text })),
    );
    this.device.textContent = device;
  }
}

export default panel(HeaderView);
