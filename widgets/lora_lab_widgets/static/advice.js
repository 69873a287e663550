// @ts-check
// What to begin with and why; which layers, by gradient norms. Draws `form`, `advice`, `layers`;
// what people do goes out as messages.

import {
  PanelView, button, el, focusIn, heading, opener, panel, section, space,
} from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { gradientGrid } from "./gradient_grid.js";
import { term } from "./term.js";

const HEADS = ["setting", "advice", "because", "source"];

class AdviceView extends PanelView {
  build() {
    const { model } = this;
    const send = (type, more = {}) => model.send({ type, ...more });
    this.opener = opener("Open the advice", () => send("open", { value: !model.get("form").open }));
    this.status = el("span", { class: "ll-dim", role: "status", "aria-live": "polite" });
    this.strip = errorStrip();
    this.memory = field("memory", "what is free", "such as 16 GB; empty: what is free here");
    this.memory.input.addEventListener("change", () =>
      send("set", { memory: this.memory.input.value }));
    this.fill = button("Fill the form and the grid", () => send("fill"), {
      class: "ll-button ll-primary",
    });
    this.table = el("tbody");
    this.notes = el("ul", { class: "ll-advice-notes ll-dim" });
    this.parameters = field("parameters", "as r = 8", "trainable at most; empty: as r = 8 has");
    this.probe = button("Which layers?", () =>
      send("probe", { parameters: this.parameters.input.value }));
    this.cancel = button("Cancel", () => send("cancel"));
    this.grid = gradientGrid((plan) => send("paint", { plan }));
    this.body = el("div", { class: "ll-advice-body" },
      el("div", { class: "ll-bar" }, this.memory.node, this.fill, space(), this.status),
      el("div", {
        class: "ll-advice-scroll", tabindex: 0, role: "region", "aria-label": "what is advised",
      }, this.tableNode()),
      this.notes,
      heading("Which layers?", term("gradient-probe"),
        "a few backward passes; nothing of the model changes"),
      el("div", { class: "ll-bar" }, this.parameters.node, this.probe, this.cancel),
      this.grid.node);
    return section("ll-advice", "advice",
      heading("Advice", "what to begin with, and what that rests on", space(), this.opener.node),
      this.body, this.strip.node);
  }

  tableNode() {
    const head = el("tr", {}, ...HEADS.map((text) => el("th", { scope: "col", text })));
    this.rows = el("table", { class: "ll-advice-table" }, el("thead", {}, head), this.table);
    return this.rows;
  }

  follow() {
    this.watch(() => this.drawForm(), "form");
    this.watch(() => this.drawAdvice(), "advice");
    this.watch(() => this.drawBusy(), "busy");
    this.watch(() => this.grid.draw(this.model.get("layers"), this.model.get("painted")),
      "layers", "painted");
    this.watch(() => this.strip.draw(this.model.get("problem")), "problem");
    this.listen({ "msg:custom": () => this.opener.answered() });
  }

  drawForm() {
    const { open, memory, parameters } = this.model.get("form");
    this.opener.draw(open);
    this.body.hidden = !open;
    this.memory.draw(memory);
    this.parameters.draw(parameters);
  }

  drawAdvice() {
    const { rows = [], notes = [] } = this.model.get("advice");
    this.rows.hidden = !rows.length;
    this.fill.disabled = !rows.length;
    this.table.replaceChildren(...rows.map(adviceRow));
    this.notes.hidden = !notes.length;
    this.notes.replaceChildren(...notes.map((text) => el("li", { text })));
    this.drawBusy();
  }

  drawBusy() {
    const busy = this.model.get("busy");
    const { of } = this.model.get("advice");
    this.status.textContent = busy || (of ? `for ${of}` : "");
    this.root.dataset.llState = busy ? "busy" : of ? "done" : "idle";
    this.probe.disabled = Boolean(busy);
    this.cancel.hidden = !busy.startsWith("probing");
  }
}

function adviceRow([setting, value, finding, source]) {
  return el("tr", {},
    el("th", { scope: "row", text: setting }),
    el("td", { class: "ll-advice-value", text: value }),
    el("td", { text: finding }),
    el("td", { class: "ll-dim", text: source }));
}

/** A text field with its caption: {node, input, draw(text)}. */
function field(label, placeholder, hint) {
  const input = el("input", {
    class: "ll-input", name: label, type: "text", placeholder, autocomplete: "off", maxlength: 40,
  });
  const node = el("label", { class: "ll-advice-field ll-dim", title: hint }, label, input);
  const draw = (text) => {
    if (focusIn(input) !== input) input.value = text;
  };
  return { node, input, draw };
}

export default panel(AdviceView);
