// @ts-check
// The data before the first step: lengths in tokens, the first example, what seems wrong.

import { PanelView, el, heading, panel, section } from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { term } from "./term.js";

const MARKS = { error: "✕", warning: "!", note: "i" };

class DataLookView extends PanelView {
  build() {
    this.status = el("span", { class: "ll-dim", role: "status", "aria-live": "polite" });
    this.strip = errorStrip();
    this.lines = el("div", { class: "ll-look-lines" });
    this.seen = el("div", { class: "ll-look-lines" });
    this.bars = el("div", {
      class: "ll-look-bars", role: "list", "aria-label": "examples by tokens",
    });
    this.findings = el("ul", { class: "ll-look-findings" });
    this.first = el("div", {
      class: "ll-look-first", tabindex: 0, role: "region", "aria-label": "the first example",
    });
    this.learned = el("span");
    this.columns = el("div", { class: "ll-look-columns" },
      el("div", {}, heading("Tokens an example", term("max-length")), this.bars),
      el("div", {}, heading("The first example", this.learned), this.first),
    );
    return section("ll-look", "the data",
      heading("The data", this.status),
      this.strip.node, this.lines, this.seen, this.findings, this.columns,
    );
  }

  follow() {
    this.watch(() => this.draw(), "look", "busy", "problem");
    this.watch(() => {
      this.seen.textContent = this.model.get("seen");
    }, "seen");
  }

  draw() {
    const { model, root } = this;
    const { lines = [], bars = [], first = [], more, findings = [] } = model.get("look");
    const isKnown = lines.length > 0;
    this.status.textContent = model.get("busy") || 
      (isKnown ? "before the first step" : "looked at when nothing trains");
    this.strip.draw(model.get("problem"));
    root.dataset.llState = model.get("busy") ? "busy" : isKnown ? "done" : "idle";
    this.columns.hidden = this.findings.hidden = !isKnown;
    this.lines.replaceChildren(...lines.map((line) => el("div", { text: line })));
    this.drawBars(bars);
    this.learned.textContent = first.some(([, isLearned]) => isLearned)
      ? "what is learned is marked" : "its class or number is learned, no token of it";
    this.first.replaceChildren(...first.map(([text, isLearned]) =>
      el(isLearned ? "mark" : "span", { text })), more ? " …" : "");
    this.findings.replaceChildren(...(findings.length ? findings.map(finding) : [
      el("li", { class: "ll-dim", text: "nothing to fix was found" }),
    ]));
  }

  drawBars(bars) {
    const most = Math.max(1, ...bars.map((bar) => bar.examples));
    this.bars.replaceChildren(...bars.map(({ start, end, examples, over }) => {
      const fill = el("i");
      fill.style.width = `${(100 * examples) / most}%`;
      return el("div", { class: `ll-look-bar${over ? " ll-over" : ""}`, role: "listitem" },
        el("span", { text: start === end ? `${start}` : `${start}–${end}` }),
        el("span", { class: "ll-look-track", "aria-hidden": "true" }, fill),
        el("span", { text: `${examples.toLocaleString("en")}${over ? " over" : ""}` }),
      );
    }));
  }
}

function finding([severity, text]) {
  return el("li", { class: `ll-look-${severity}` },
    el("span", { class: "ll-look-mark", "aria-label": severity, text: MARKS[severity] }),
    el("span", { text }),
  );
}

export default panel(DataLookView);
