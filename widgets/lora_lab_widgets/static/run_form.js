// @ts-check
// The settings of the next run: the training's, and those that its method has.
/** @import { Model } from "./_shared.js" */

import { el, focusIn, markInvalid } from "./_shared.js";

const FIELDS = [
  ["task", "task", "what the model learns"],
  ["max_steps", "steps", "optimizer steps"],
  ["per_device_train_batch_size", "batch", "examples in a forward pass"],
  ["learning_rate", "learning rate", "peak rate of AdamW"],
  ["max_length", "max length", "tokens of an example; longer ones are cut"],
  ["num_train_epochs", "epochs", "in place of steps: how often the examples are gone through"],
  ["eval_steps", "eval every", "held-out examples are scored every so many steps; empty: not"],
  ["seed", "seed", "of the adapter's start, the data's order and dropout"],
];
const METHOD = { name: "method", label: "method",
  help: "how the model is adapted; the names are the LoRA paper's", ticked: false };
const CHOICES = new Set(["task", "method"]);

export class RunForm {
  /**
   * @param {Model} model
   * @param {(changes: Record<string, any>) => void} changed called with {setting: its value}
   */
  constructor(model, changed) {
    this.model = model;
    this.changed = changed;
    /** @type {Record<string, any>} */
    this.inputs = {};
    /** @type {Record<string, HTMLElement>} */
    this.fields = {};
    /** Of all methods, as Python tells of them; the same field serves several. */
    this.ofMethods = [METHOD, ...model.get("fields")];
    const ofTraining = FIELDS.map(([name, label, help]) => ({ name, label, help, ticked: false }));
    const build = (field) => this.buildField(field);
    this.line = el("div", { class: "ll-method-line", "aria-live": "polite" });
    this.node = el("fieldset", { class: "ll-form", "aria-label": "settings of the next run" },
      el("div", { class: "ll-settings ll-method" }, ...this.ofMethods.map(build)),
      this.line,
      el("div", { class: "ll-settings" }, ...ofTraining.map(build)));
  }

  buildField({ name, label, help, ticked }) {
    const input = inputFor(name, ticked);
    input.addEventListener("change", () => this.changed({ [name]: readInput(name, input) }));
    const caption = el("span", { class: "ll-dim", text: label });
    this.inputs[name] = input;
    this.fields[name] = el("label", { class: "ll-field", title: help }, caption, input);
    return this.fields[name];
  }

  drawTasks() {
    this.drawChoice("task", this.model.get("tasks").map((task) => [task, task]));
  }

  drawMethods() {
    this.drawChoice("method", this.model.get("methods").map(({ name, text }) => [name, text]));
    this.drawFields();
  }

  drawChoice(name, options) {
    const input = this.inputs[name];
    input.replaceChildren(...options.map(([value, text]) => el("option", { value, text })));
    input.value = this.model.get("settings")[name];
  }

  /** The chosen method's own fields, at once: Python's word on them comes with its answer. */
  drawFields() {
    const chosen = this.inputs.method.value;
    const names = this.model.get("methods").find(({ name }) => name === chosen)?.fields ?? [];
    for (const { name } of this.ofMethods) {
      this.fields[name].hidden = name !== "method" && !names.includes(name);
    }
  }

  drawPlan() {
    const { line: text, bad, automatic } = this.model.get("plan");
    if (this.line.textContent !== (text ?? "")) this.line.textContent = text ?? "";
    this.line.title = text ?? "";
    this.line.classList.toggle("ll-method-bad", Boolean(bad));
    for (const [name, value] of Object.entries(automatic ?? {})) {
      this.inputs[name].placeholder = value;
    }
  }

  draw() {
    for (const [name, value] of Object.entries(this.model.get("settings"))) {
      const input = this.inputs[name];
      if (!input) continue;
      if (input.type === "checkbox") input.checked = value === true;
      // A value under the user's hands stays as typed.
      else if (focusIn(input) !== input || CHOICES.has(name)) input.value = value;
    }
    this.drawFields();
  }

  values() {
    const entries = Object.entries(this.inputs);
    return Object.fromEntries(entries.map(([name, input]) => [name, readInput(name, input)]));
  }

  /** Mark the field that a problem is about. */
  blame(field) {
    markInvalid(this.inputs, field);
  }
}

function inputFor(name, ticked) {
  if (CHOICES.has(name)) return el("select", { class: "ll-input", name });
  if (ticked) return el("input", { class: "ll-tick", name, type: "checkbox" });
  return el("input", {
    class: "ll-input", name, type: "text", inputmode: "decimal", autocomplete: "off",
  });
}

/** What the user typed: a number where it is one, else the text, for Python to judge. */
function readInput(name, input) {
  if (input.type === "checkbox") return input.checked;
  const text = input.value.trim();
  const number = Number(text.replace(",", "."));
  return CHOICES.has(name) || text === "" || Number.isNaN(number) ? text : number;
}
