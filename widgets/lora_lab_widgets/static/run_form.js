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
  ["seed", "seed", "of the adapter's start, the data's order and dropout"],
];
// Of each method those that Python names; the same field serves several.
const METHOD_FIELDS = [
  ["method", "method", "how the model is adapted; the names are the LoRA paper's"],
  ["lora_alpha", "α", "ΔW is scaled by α / r"],
  ["lora_dropout", "dropout", "on the way into A, from 0 to below 1"],
  ["init_r", "init_r",
    "rank of every painted matrix at the start; empty: 1.5 times the painted one"],
  ["tinit", "tinit", "steps before the first cut; empty: 13 % of all"],
  ["tfinal", "tfinal", "steps after the last cut; empty: 48 % of all"],
  ["deltaT", "deltaT", "steps from one cut to the next; empty: 0.2 % of all, at least 1"],
  ["top_layers", "top blocks", "how many of the last blocks are trained"],
  ["new_biases", "new zero biases", "give linear layers without a bias a new one of zeros"],
  ["prefix_length", "prefix l_p", "learned tokens before the prompt"],
  ["infix_length", "infix l_i", "learned tokens behind the prompt"],
  ["r", "bottleneck r", "width of the adapter layers"],
  ["drop_layers", "drop layers",
    "of the lowest blocks, which answer without their adapters; empty: 5, or all but one"],
];
const CHOICES = new Set(["task", "method"]);
const TICKED = new Set(["new_biases"]);

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
    const build = (/** @type {string[]} */ [name, label, hint]) =>
      this.buildField(name, label, hint);
    this.line = el("div", { class: "ll-method-line", "aria-live": "polite" });
    this.node = el("fieldset", { class: "ll-form", "aria-label": "settings of the next run" },
      el("div", { class: "ll-settings ll-method" }, ...METHOD_FIELDS.map(build)),
      this.line,
      el("div", { class: "ll-settings" }, ...FIELDS.map(build)));
  }

  buildField(name, label, hint) {
    const input = inputFor(name);
    input.addEventListener("change", () => this.changed({ [name]: readInput(name, input) }));
    const caption = el("span", { class: "ll-dim", text: label });
    this.inputs[name] = input;
    this.fields[name] = el("label", { class: "ll-field", title: hint }, caption, input);
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
    for (const [name] of METHOD_FIELDS) {
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
      if (TICKED.has(name)) input.checked = value === true;
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

function inputFor(name) {
  if (CHOICES.has(name)) return el("select", { class: "ll-input", name });
  if (TICKED.has(name)) return el("input", { class: "ll-tick", name, type: "checkbox" });
  return el("input", {
    class: "ll-input", name, type: "text", inputmode: "decimal", autocomplete: "off",
  });
}

/** What the user typed: a number where it is one, else the text, for Python to judge. */
function readInput(name, input) {
  if (TICKED.has(name)) return input.checked;
  const text = input.value.trim();
  const number = Number(text.replace(",", "."));
  return CHOICES.has(name) || text === "" || Number.isNaN(number) ? text : number;
}
