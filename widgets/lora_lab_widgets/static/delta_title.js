// @ts-check
// The title of ΔW's line, with what explains the line and the figures below it.

import { PanelView, el, panel } from "./_shared.js";
import { term } from "./term.js";

class DeltaTitleView extends PanelView {
  build() {
    return el("span", { class: "ll-panel ll-delta-title" },
      el("span", { class: "ll-title", text: "ΔW" }),
      term(["delta-w", "spectrum", "overlap", "amplification"]));
  }
}

export default panel(DeltaTitleView, { part: true });
