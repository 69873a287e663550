// @ts-check
// The laboratory's tabs and controls. Draws `form`, `state` and `problem`; the figure below is
// Python's. Nothing is written back: what people do goes out as messages, each answered by "seen".
/** @import { Model } from "./_shared.js" */

import {
  PanelView, button, el, focusIn, heading, listen, opener, panel, progressBar, section, space,
} from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { control } from "./laboratory_controls.js";
import { Term } from "./term.js";

const PATIENCE_MS = 3000; // after so long without an answer the next message goes out anyway

/** Sends at once, but for sliders: those wait for the last answer, and only the newest goes out. */
class Messenger {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.page = Math.random().toString(36).slice(2, 8);
    this.count = 0;
    this.waiting = null; // the message that has no answer yet
    this.held = null; // the message that waits for it
    this.timer = 0;
    this.unlisten = listen(model, { "msg:custom": (answer) => this.hear(answer) });
  }

  post(message) {
    this.count += 1;
    const seq = `${this.page}-${this.count}`;
    this.waiting = seq;
    this.held = null;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.hear({ type: "seen", seq }), PATIENCE_MS);
    this.model.send({ ...message, seq });
  }

  hear(answer) {
    if (answer.type !== "seen" || answer.seq !== this.waiting) return;
    this.waiting = null;
    clearTimeout(this.timer);
    if (this.held) this.post(this.held);
  }

  slide(message) {
    if (this.waiting === null) this.post(message);
    else this.held = message;
  }

  close() {
    clearTimeout(this.timer);
    this.unlisten();
  }
}

/** {node, draw(view, controls)}: the controls of one view, built anew for another. */
function controlRow(messenger) {
  const node = el("div", { class: "ll-lab-controls" });
  let built = "";
  let parts = [];
  const draw = (view, controls) => {
    const kinds = controls.map(({ name, kind, label }) => [name, kind, label]);
    const shape = JSON.stringify([view, kinds]);
    if (shape !== built) {
      built = shape;
      const focused = focusIn(node)?.getAttribute("name");
      parts = controls.map((each) => control(each, messenger));
      node.replaceChildren(...parts.map((part) => part.node));
      const again = focused && node.querySelector(`[name="${CSS.escape(focused)}"]`);
      if (again) /** @type {HTMLElement} */ (again).focus();
    }
    for (const [i, each] of controls.entries()) parts[i].draw(each);
    node.hidden = !controls.length;
  };
  return { node, draw };
}

/** {node, draw(views, chosen)}; `choose` is called with a view's name. */
function tabList(choose) {
  const tabs = new Map();
  const onKey = (event) => {
    const keys = [...tabs.keys()];
    const at = keys.findIndex((key) => tabs.get(key) === event.target);
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: keys.length - 1 };
    const next = moves[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    const key = keys[(next + keys.length) % keys.length];
    tabs.get(key).focus();
    choose(key);
  };
  const node = el("div", {
    class: "ll-lab-tabs", role: "tablist", "aria-label": "views of ΔW", on: { keydown: onKey },
  });
  const draw = (views, chosen) => {
    for (const [key, title] of views) {
      if (tabs.has(key)) continue;
      const tab = button(title, () => choose(key), {
        class: "ll-lab-tab", role: "tab", "data-title": title,
      });
      tabs.set(key, tab);
      node.append(tab);
    }
    for (const [key, tab] of tabs) {
      tab.setAttribute("aria-selected", String(key === chosen));
      tab.tabIndex = key === chosen ? 0 : -1;
    }
  };
  return { node, draw };
}

class LaboratoryView extends PanelView {
  build() {
    const { model } = this;
    const messenger = new Messenger(model);
    this.closers.push(() => messenger.close());
    this.opener = opener("Open the analysis", () =>
      messenger.post({ type: "open", value: !model.get("form").open }));
    this.tabs = tabList((name) => messenger.post({ type: "view", name }));
    this.question = el("p", { class: "ll-lab-question ll-dim" });
    this.term = new Term(() => this.model.get("form").terms ?? []);
    this.controls = controlRow(messenger);
    this.progress = progressBar("measuring");
    this.status = el("span", { role: "status" });
    this.again = button("Look again", () => messenger.post({ type: "again" }));
    this.cancel = button("Cancel", () => messenger.post({ type: "cancel" }));
    this.strip = errorStrip();
    const status = el("div", { class: "ll-lab-status ll-dim" },
      this.status, this.progress.node, this.cancel, this.again);
    this.body = el("div", { class: "ll-lab-body" }, this.tabs.node,
      el("div", { class: "ll-lab-line" }, this.term.node, this.question, status),
      this.controls.node, this.strip.node);
    return section("ll-lab", "analysis of ΔW",
      heading("Analyze ΔW", "what it has learned, and how it lies against W₀", space(),
        this.opener.node),
      this.body);
  }

  follow() {
    this.watch(() => this.drawForm(), "form");
    this.watch(() => this.drawState(), "state");
    this.watch(() => this.strip.draw(this.model.get("problem")), "problem");
  }

  drawForm() {
    const form = this.model.get("form");
    this.opener.draw(form.open);
    this.body.hidden = !form.open;
    this.root.dataset.llView = form.open ? form.view : "";
    if (!form.open) return;
    this.tabs.draw(form.views, form.view);
    this.question.textContent = form.question;
    this.controls.draw(form.view, form.controls);
    this.term.draw();
  }

  drawState() {
    const { busy = "", share = 0, note = "", again = false } = this.model.get("state");
    this.root.dataset.llState = busy ? "busy" : "rest";
    this.status.textContent = busy || note;
    this.again.hidden = Boolean(busy);
    this.again.disabled = !again;
    this.cancel.hidden = !busy;
    this.progress.node.hidden = !busy;
    this.progress.draw(Math.round(100 * share), 100);
  }
}

export default panel(LaboratoryView);
