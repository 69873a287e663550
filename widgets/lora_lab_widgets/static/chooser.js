// @ts-check
// The pickers of model and data. Names and rows come from outside: textContent only.

import { PanelView, button, el, heading, panel, progressBar, section, space } from "./_shared.js";
import { ChooserColumns } from "./chooser_columns.js";
import { errorStrip } from "./error_strip.js";
import { sendFile } from "./send_file.js";
import { explainedField, term } from "./term.js";

const PAUSE_MS = 400; // between an answer and the next question, while there will be news
const LOST_MS = 5_000; // after which an answer is not waited for
const OWN = "the model on show";

let pickers = 0; // radio buttons of one name on a page are one choice

class ChooserView extends PanelView {
  build() {
    pickers += 1;
    const choose = (change) => this.model.send({ type: "choose", ...change });
    this.models = radios(`ll-models-${pickers}`, (model) => choose({ model }));
    this.tasks = radios(`ll-tasks-${pickers}`, (data) => choose({ data, options: {} }));
    this.typedModel = typed("a folder, or a hub id: owner/name", (model) => choose({ model }));
    this.typedData = typed("a file, or a hub id: owner/name", (data) =>
      choose({ data, options: {} }));
    this.device = select((device) => choose({ device }));
    this.dtype = select((dtype) => choose({ dtype }));
    this.card = el("div", { class: "ll-chooser-card", role: "status" });
    this.about = el("div", { class: "ll-dim ll-chooser-about" });
    this.columns = new ChooserColumns((options) => choose({ options }));
    this.file = el("input", {
      type: "file", class: "ll-sr", tabindex: -1, "aria-hidden": "true",
      on: { change: () => this.upload() },
    });
    this.uploading = el("span", { class: "ll-dim", role: "status" });
    this.uploadButton = button("Upload…", () => this.file.click(), {
      title: "a file of this computer",
    });
    this.close = button("Close", () => this.model.send({ type: "close" }));
    this.open = button("Open", () => {
      this.open.disabled = true; // until Python has answered
      this.model.send({ type: "open" });
    }, { class: "ll-button ll-primary" });
    this.cancel = button("Cancel", () => this.model.send({ type: "cancel" }));
    this.progress = progressBar("opening");
    this.said = el("span", { role: "status" });
    this.passed = el("span", { class: "ll-dim" });
    this.notes = el("ul", { class: "ll-chooser-notes" });
    this.strip = errorStrip();
    return section("ll-chooser", "model and data",
      heading("Model and data", space(), this.close),
      el("div", { class: "ll-chooser-columns" },
        group("Model", term("base-model"), this.models.node,
          field("another model", this.typedModel),
          el("div", { class: "ll-chooser-row" },
            explainedField("device", this.device.node, term("device")),
            explainedField("dtype", this.dtype.node, term("dtype"))),
          this.card),
        group("Data", term(["task", "synthetic"]), this.tasks.node, this.about,
          field("other data", this.typedData),
          el("div", { class: "ll-chooser-row" }, this.uploadButton, this.file, this.uploading),
          this.columns.node)),
      el("div", { class: "ll-run-row" }, this.open, this.cancel, this.said, this.passed),
      this.progress.node, this.notes, this.strip.node,
    );
  }

  follow() {
    this.watch(() => this.drawModels(), "models", "chosen");
    this.watch(() => this.drawChoices(), "devices", "dtypes", "chosen");
    this.watch(() => this.drawCard(), "card", "chosen");
    this.watch(() => this.drawData(), "tasks", "chosen");
    this.watch(() => {
      const chosen = this.model.get("chosen");
      const isTask = this.model.get("tasks").some((each) => each.name === chosen.data);
      this.columns.draw(this.model.get("data"), this.model.get("kinds"), chosen, isTask);
    }, "data", "kinds", "chosen");
    this.watch(() => this.drawDoing(), "doing", "here");
    this.watch(() => this.strip.draw(this.model.get("problem")), "problem");
    this.watch(() => {
      this.close.hidden = !this.model.get("closable");
    }, "closable");
    this.watch(() => this.ask(), "busy");
    this.watch(() => {
      this.notes.replaceChildren(...this.model.get("notes").map((text) => el("li", { text })));
    }, "notes");
    this.listen({
      "msg:custom": () => {
        this.drawDoing();
        this.ask();
      },
    });
    this.closers.push(() => {
      clearTimeout(this.asking);
      clearInterval(this.clock);
    });
  }

  /** Ask for news again and again, while there will be some. */
  ask() {
    clearTimeout(this.asking);
    if (!this.model.get("busy") || this.kernel.gone) return;
    this.asking = setTimeout(() => {
      this.model.send({ type: "tick" });
      this.asking = setTimeout(() => this.ask(), LOST_MS);
    }, PAUSE_MS);
  }

  drawModels() {
    const { model } = this;
    const { model: name } = model.get("chosen");
    const own = name === OWN ? [{ name: OWN, text: "it stays" }] : [];
    this.models.draw([...own, ...model.get("models")], name);
    const isListed = name === OWN || model.get("models").some((each) => each.name === name);
    setTyped(this.typedModel, isListed ? "" : name);
  }

  drawChoices() {
    const { device, dtype } = this.model.get("chosen");
    this.device.draw(this.model.get("devices"), device);
    this.dtype.draw(this.model.get("dtypes"), dtype);
  }

  drawCard() {
    const { lines = [], problem } = this.model.get("card");
    const { model: name } = this.model.get("chosen");
    const texts = problem ? [problem.message] : lines;
    const waits = name && name !== OWN && !texts.length ? ["looking what it takes…"] : [];
    this.card.classList.toggle("ll-chooser-bad", Boolean(problem));
    this.card.replaceChildren(...[...texts, ...waits].map((text) => el("div", { text })));
  }

  drawData() {
    const { data } = this.model.get("chosen");
    const tasks = this.model.get("tasks");
    this.tasks.draw(tasks, data);
    const task = tasks.find((each) => each.name === data);
    setTyped(this.typedData, task ? "" : data);
    this.about.replaceChildren(...(task?.card ?? []).map((text) => el("div", { text })));
  }

  drawDoing() {
    const { text = "", share, seconds = 0 } = this.model.get("doing");
    const isAtWork = Boolean(text);
    this.open.disabled = isAtWork || !this.model.get("here");
    this.cancel.hidden = this.progress.node.hidden = !isAtWork;
    this.said.textContent = this.model.get("here")
      ? text : "in marimo a cell opens another: Workbench(model, task=data)";
    this.progress.node.classList.toggle("ll-chooser-unknown", share === null);
    this.progress.draw(share ?? 1, 1, share === null ? text : `${Math.round(100 * share)} %`);
    // The seconds are counted here: they go on where the kernel is too busy to answer.
    clearInterval(this.clock);
    this.passed.textContent = "";
    if (!isAtWork) return;
    const begun = performance.now() - 1000 * seconds;
    const tell = () => {
      this.passed.textContent = `${Math.round((performance.now() - begun) / 1000)} s`;
    };
    tell();
    this.clock = setInterval(tell, 1000);
  }

  async upload() {
    const [file] = this.file.files ?? [];
    this.file.value = ""; // so that the same one can be chosen again
    if (!file) return;
    this.uploadButton.disabled = true; // one at a time: their pieces go the same way
    try {
      await sendFile(this.model, file, (text) => {
        this.uploading.textContent = text;
      });
    } finally {
      this.uploadButton.disabled = false;
    }
  }
}

function group(title, mark, ...nodes) {
  return el("div", { role: "group", "aria-label": title },
    el("div", { class: "ll-caption" }, el("span", { class: "ll-title", text: title }), mark),
    ...nodes);
}

function field(text, node) {
  return el("label", { class: "ll-field" }, el("span", { class: "ll-dim", text }), node);
}

/** A field whose text counts once it is typed. */
function typed(placeholder, take) {
  const node = el("input", { class: "ll-input", type: "text", placeholder, spellcheck: "false" });
  node.addEventListener("change", () => {
    node.value = node.value.trim();
    if (node.value) take(node.value);
  });
  return node;
}

/** Show what Python has; what somebody is typing stays. */
function setTyped(node, text) {
  if (node.getRootNode().activeElement !== node || !text) node.value = text;
}

function select(take) {
  const node = el("select", { class: "ll-input" });
  node.addEventListener("change", () => take(node.value));
  const draw = (options, value) => {
    node.replaceChildren(...options.map(({ name, text }) => el("option", { value: name, text })));
    node.value = value;
  };
  return { node, draw };
}

/** One of several, a line each; rows that stay keep the focus. */
function radios(name, take) {
  const node = el("div", { class: "ll-chooser-list" });
  let drawn = "";
  const draw = (rows, value) => {
    if (JSON.stringify(rows) !== drawn) {
      drawn = JSON.stringify(rows);
      node.replaceChildren(...rows.map((row) => {
        const input = el("input", {
          type: "radio", name, value: row.name, on: { change: () => take(row.name) },
        });
        return el("label", {}, input, el("b", { text: row.name }),
          el("span", { class: "ll-dim", text: row.text }));
      }));
    }
    for (const input of node.querySelectorAll("input")) input.checked = input.value === value;
  };
  return { node, draw };
}

export default panel(ChooserView);
