// @ts-check
// The settings of the next run: the training's, and those that its method has.
/** @import { Model } from "./_shared.js" */

import { el, focusIn } from "./_shared.js";
import { Term, explainedField } from "./term.js";

/**
 * @typedef {{name: string, label: string, help: string, part: "method" | "training",
 *   start?: any, ticked?: boolean, wide?: boolean, more?: boolean, options?: string[],
 *   term?: string}} Field  its term is a key of the glossary
 */

const METHOD = {
  name: "method", label: "method", help: "how the model is adapted; the names are the LoRA paper's",
  options: [], part: "method",
};
const TASK = {
  name: "task", label: "task", help: "what the model learns", options: [], part: "training",
};

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
    this.places = {};
    this.methodTerm = new Term(() => this.chosen?.terms ?? []);
    this.blamed = ""; // the field that a problem is about
    /** @type {Field[]} as Python tells of them; the same field serves several methods */
    this.fields = [METHOD, TASK, ...model.get("fields")];
    const rows = (part, more, isTick = undefined) => this.fields
      .filter((field) => field.part === part && Boolean(field.more) === more)
      .filter(({ ticked }) => isTick === undefined || Boolean(ticked) === isTick)
      .map((field) => this.buildField(field));
    this.line = el("div", { class: "ll-method-line", "aria-live": "polite" });
    this.rate = el("div", { class: "ll-method-rate" });
    this.moreNames = el("summary");
    this.more = el("details", { class: "ll-run-more" }, this.moreNames,
      el("div", { class: "ll-settings" }, ...rows("method", true), ...rows("training", true)));
    this.node = el("fieldset", { class: "ll-form", "aria-label": "settings of the next run" },
      el("div", { class: "ll-settings ll-of-method" }, ...rows("method", false), this.line),
      el("div", { class: "ll-settings" }, ...rows("training", false, false)),
      el("div", { class: "ll-run-ticks" }, ...rows("training", false, true)), this.rate, this.more);
  }

  /** @param {Field} field */
  buildField(field) {
    const { name, label, help, wide } = field;
    const input = inputFor(field);
    input.addEventListener("change", () => this.onChange(name));
    const mark = name === "method" ? this.methodTerm : new Term(() => [field.term ?? ""]);
    this.inputs[name] = input;
    this.places[name] =
      explainedField(label, input, mark.node, { class: wide ? "ll-wide" : "", title: help });
    return this.places[name];
  }

  /** The chosen method, as Python tells of it. */
  get chosen() {
    const chosen = this.inputs.method?.value;
    return this.model.get("methods").find(({ name }) => name === chosen);
  }

  onChange(name) {
    const changes = { [name]: readInput(this.inputs[name]) };
    // A method brings its own learning rate, also while Python is busy.
    const rate = this.model.get("plan").rates?.[changes.method];
    this.changed(rate === undefined ? changes : { ...changes, learning_rate: rate });
  }

  drawTasks() {
    this.drawChoice("task", this.model.get("tasks").map((task) => [task, task]));
  }

  drawMethods() {
    this.drawChoice("method", this.model.get("methods").map(({ name, text }) => [name, text]));
    this.drawFields();
  }

  /** @param {[string, string][]} options values, and how they are called */
  drawChoice(name, options) {
    const input = this.inputs[name];
    input.replaceChildren(...options.map(([value, text]) => el("option", { value, text })));
    choose(input, this.model.get("settings")[name]);
  }

  /** The chosen method's own fields, at once: Python's word on them comes with its answer. */
  drawFields() {
    const own = this.chosen?.fields ?? [];
    this.methodTerm.draw();
    const behind = this.model.get("plan").more ?? [];
    for (const { name, part, more } of this.fields) {
      if (more) this.places[name].hidden = !behind.includes(name);
      else if (part === "method" && name !== "method") {
        this.places[name].hidden = !own.includes(name);
      }
    }
    this.nameMore();
  }

  drawPlan() {
    const { line, bad, automatic, rate, best_by: metrics } = this.model.get("plan");
    for (const [name, value] of Object.entries(automatic ?? {})) {
      this.inputs[name].placeholder = value;
    }
    if (metrics) this.drawChoice("metric_for_best_model", metrics);
    this.rate.textContent = rate ?? "";
    this.rate.title = rate ?? "";
    this.places.learning_rate.title = [this.help("learning_rate"), rate].filter(Boolean).join("\n");
    this.drawFields();
    this.drawWrong();
    if (bad) this.say(line, true);
    else this.say(Object.values(this.wrong).join(" · ") || line || "", this.isWrong);
  }

  /** {setting: why it cannot be}, of those on show. */
  get wrong() {
    return this.model.get("plan").wrong ?? {};
  }

  get isWrong() {
    return Object.keys(this.wrong).length > 0;
  }

  say(text, bad) {
    if (this.line.textContent !== text) this.line.textContent = text;
    this.line.title = text;
    this.line.classList.toggle("ll-method-bad", Boolean(bad));
  }

  /** Mark the fields that cannot be; those behind "more" are shown then. */
  drawWrong() {
    for (const { name, more } of this.fields) {
      const why = this.wrong[name];
      const marked = why !== undefined || name === this.blamed;
      const input = this.inputs[name];
      if (marked) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
      if (why === undefined) input.removeAttribute("title"); // else it would hide the label's
      else input.title = why;
      if (marked && more) this.more.open = true;
    }
  }

  draw() {
    for (const [name, value] of Object.entries(this.model.get("settings"))) {
      const input = this.inputs[name];
      if (!input) continue;
      if (input.type === "checkbox") input.checked = value === true;
      else if (isChoice(input)) choose(input, value);
      // A value under the user's hands stays as typed.
      else if (focusIn(input) !== input) input.value = value;
    }
    this.drawFields();
  }

  /** What is set behind "more" is named on it. */
  nameMore() {
    const set = this.fields.filter(({ name, more, start }) =>
      more && !this.places[name].hidden && readInput(this.inputs[name]) !== start);
    this.moreNames.textContent = ["more", ...set.map(({ label }) => label)].join(" · ");
    this.moreNames.title = this.moreNames.textContent; // its end may be cut: it stays one line
    this.node.classList.toggle("ll-more-set", set.length > 0);
  }

  values() {
    const entries = Object.entries(this.inputs);
    return Object.fromEntries(entries.map(([name, input]) => [name, readInput(input)]));
  }

  /** Mark the field that a problem is about. */
  blame(field) {
    this.blamed = field ?? "";
    this.drawWrong();
  }

  help(name) {
    return this.fields.find((field) => field.name === name)?.help ?? "";
  }
}

/** @param {Field} field */
function inputFor({ name, ticked, options }) {
  if (options) {
    return el("select", { class: "ll-input", name },
      ...options.map((value) => el("option", { value, text: value })));
  }
  if (ticked) return el("input", { class: "ll-tick", name, type: "checkbox" });
  return el("input", {
    class: "ll-input", name, type: "text", inputmode: "decimal", autocomplete: "off",
  });
}

const isChoice = (input) => input.localName === "select";

/** Choose a value, also one that was set from Python and is none of the options. */
function choose(input, value) {
  const text = String(value);
  if (![...input.options].some((option) => option.value === text)) {
    input.append(el("option", { value: text, text }));
  }
  input.value = text;
}

/** What the user typed: a number where it is one, else the text, for Python to judge. */
function readInput(input) {
  if (input.type === "checkbox") return input.checked;
  const text = input.value.trim();
  const number = Number(text.replace(",", "."));
  return isChoice(input) || text === "" || Number.isNaN(number) ? text : number;
}
