// @ts-check
// The fields that say what a sweep tries: texts, and one tick.

import { el, focusIn, markInvalid } from "./_shared.js";
import { explainedField, term } from "./term.js";

const FIELDS = [
  ["r", "ranks", "4, 8, 16", "every painted matrix gets this rank"],
  ["learning_rate", "learning rates", "5e-4, 2e-3", "peak rates of AdamW"],
  ["seed", "seeds", "0, 1", "of the adapter's start, the data's order and dropout"],
  ["target_modules", "targets", "q+v, q+k+v+o", "roles, joined by +; all: every matrix"],
  ["layers", "layers", "", "of what is painted only the matrices in these layers"],
  ["method", "methods", "LoRA, BitFit",
    "the names in the run's drop-down; a rank changes those that have one"],
  ["stop_at", "stop early at step", "never",
    "ASHA: at this step, and at 3, 9 … times it, only the best third so far goes on"],
  ["name", "name", "sweep",
    "of its folder among the runs; cells that are finished there are skipped"],
  ["compare", "compare methods", "",
    "each method at its own best rate: half of the held-out examples chooses it, the other half " +
      "says how good it is there; without rates and seeds five of these and three of those"],
];
// Those that a learner may not know; panel.py reads the keys from here.
const MARKS = {
  r: () => term(["rank", "rank-cap"]),
  learning_rate: () => term("learning-rate"),
  seed: () => term("seed"),
  target_modules: () => term(["targets", "roles"]),
  stop_at: () => term("asha"),
  compare: () => term("comparison"),
};
const TYPING_MS = 350; // after the last key, Python counts the cells

export class SweepForm {
  /**
   * @param {() => void} changed called a moment after the last key
   * @param {string} layers an example of what that field takes, of this model
   */
  constructor(changed, layers) {
    this.changed = changed;
    this.timer = 0;
    /** @type {Record<string, HTMLInputElement>} */
    this.inputs = {};
    this.node = el("fieldset", {
      class: "ll-form ll-sweep-form", "aria-label": "what the sweep tries",
    }, ...FIELDS.map(([name, label, example, hint]) =>
      this.buildField(name, label, name === "layers" ? layers : example, hint)));
  }

  buildField(name, label, example, hint) {
    if (name === "compare") return this.buildTick(name, label, hint);
    const input = el("input", {
      class: "ll-input", name, type: "text", placeholder: example, autocomplete: "off",
      spellcheck: "false", maxlength: 300, on: { input: () => this.onInput() },
    });
    return this.place(name, label, hint, input);
  }

  buildTick(name, label, hint) {
    const input = el("input", {
      class: "ll-tick", name, type: "checkbox", on: { change: () => this.changed() },
    });
    return this.place(name, label, hint, input);
  }

  place(name, label, hint, input) {
    this.inputs[name] = input;
    if (name in MARKS) return explainedField(label, input, MARKS[name](), { title: hint });
    const caption = el("span", { class: "ll-dim", text: label });
    return el("label", { class: "ll-field", title: hint }, caption, input);
  }

  onInput() {
    clearTimeout(this.timer);
    this.timer = setTimeout(this.changed, TYPING_MS);
  }

  close() {
    clearTimeout(this.timer);
  }

  draw(values) {
    for (const [name, input] of Object.entries(this.inputs)) {
      // A text under the user's hands stays as typed.
      if (input.type === "checkbox") input.checked = values[name] === "yes";
      else if (focusIn(input) !== input) input.value = values[name] ?? "";
    }
  }

  values() {
    clearTimeout(this.timer);
    const entries = Object.entries(this.inputs);
    return Object.fromEntries(entries.map(([name, input]) => [name, textOf(input)]));
  }

  /** Mark the field that a problem is about. */
  blame(field) {
    markInvalid(this.inputs, field);
  }
}

/** @param {HTMLInputElement} input */
function textOf(input) {
  if (input.type !== "checkbox") return input.value;
  return input.checked ? "yes" : "";
}
