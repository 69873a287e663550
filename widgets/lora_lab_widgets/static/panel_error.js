// @ts-check
// What went wrong in the panel above, as it was brought up to date.

import { PanelView, el, panel } from "./_shared.js";
import { errorStrip } from "./error_strip.js";

class PanelErrorView extends PanelView {
  build() {
    this.strip = errorStrip();
    return el("div", { class: "ll-panel" }, this.strip.node);
  }

  follow() {
    this.watch(() => this.strip.draw(this.model.get("problem")), "problem");
  }
}

export default panel(PanelErrorView, { part: true });
