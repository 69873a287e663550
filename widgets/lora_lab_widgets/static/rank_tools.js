// @ts-check
// The rank grid's brush, and its buttons: presets, undo, redo, copy.
/** @import { RankGridView } from "./rank_grid.js" */
/** @import { Cell } from "./rank_store.js" */

import { button, copyText, el } from "./_shared.js";
import { sameRanks } from "./rank_store.js";
import { tint } from "./rank_table.js";

const BRUSHES = [1, 2, 4, 8, 16, 32, 64];
const ATTENTION = ["q", "k", "v", "o"];

export class RankTools {
  /** @param {RankGridView} view */
  constructor(view) {
    this.view = view;
    this.store = view.store;
    this.model = view.model;
    this.group = `ll-${Math.random().toString(36).slice(2)}`; // of this view's radio buttons
    this.copying = false; // the text to copy is still to come
    /** @type {Record<string, HTMLButtonElement>} */
    this.buttons = {};
    this.brushes = el("div", {
      class: "ll-brushes", role: "radiogroup", "aria-label": "brush: rank to paint",
    });
    this.bar = el("div", { class: "ll-bar" },
      ...this.buildPresets(),
      el("span", { class: "ll-rank-travel" },
        this.button("undo", "↶", "undo (Ctrl+Z)", () => view.travel("undo"), "undo"),
        this.button("redo", "↷", "redo (Ctrl+Shift+Z)", () => view.travel("redo"), "redo"),
        this.button("copy", "copy as Python", "copy the config that the workbench shows",
          () => this.copy())),
    );
  }

  /** @param {string} [name] for screen readers, where the text is a sign */
  button(key, text, title, act, name) {
    const isDisabled = () => node.getAttribute("aria-disabled") === "true";
    const node = button(text, () => isDisabled() || act(), { title, "aria-label": name });
    this.buttons[key] = node;
    return node;
  }

  buildPresets() {
    const { view } = this;
    /** @type {(key: string, text: string, title: string, plan: (cell: Cell) => number) => Node} */
    const preset = (key, text, title, plan) =>
      this.button(key, text, title, () => view.preset(text, plan));
    const last = () => view.paintLast(Number(layers.value));
    const layers = el("input", {
      type: "number", class: "ll-rank-n", value: 4, min: 1, step: 1,
      "aria-label": "how many layers",
      on: { keydown: (event) => event.key === "Enter" && last() },
    });
    return [
      preset("paper", "paper: q,v r=8",
        "rank 8 on q and v of every layer, nothing else (Hu et al., 2022)",
        (cell) => (["q", "v"].includes(cell.role) ? 8 : 0)),
      preset("all", "all linear", "the brush's rank on every linear layer",
        (cell) => (cell.experts ? 0 : view.brush)),
      preset("attention", "attention", "the brush's rank on q, k, v and o, nothing else",
        (cell) => (ATTENTION.includes(lastPart(cell.role)) ? view.brush : 0)),
      el("span", { class: "ll-rank-last" },
        this.button("last", "last",
          "the brush's rank on every matrix of the last layers, nothing else", last),
        layers, el("span", { text: "layers" })),
      preset("clear", "clear", "no ranks at all", () => 0),
    ];
  }

  buildBrushes() {
    const ranks = [...new Set([...BRUSHES, this.view.brush])].sort((a, b) => a - b);
    const focused = this.brushes.contains(document.activeElement);
    this.brushes.replaceChildren(
      el("span", { text: "brush", "aria-hidden": "true" }),
      ...ranks.map((rank) => this.buildBrush(rank)),
    );
    if (focused) [...this.brushes.querySelectorAll("input")].find((each) => each.checked).focus();
    this.draw();
  }

  buildBrush(rank) {
    const input = el("input", {
      type: "radio", name: this.group, class: "ll-sr", "aria-label": `rank ${rank}`,
      on: { change: () => this.view.setBrush(rank) },
    });
    input.checked = rank === this.view.brush;
    const title = `paint rank ${rank}`;
    const swatch = el("label", { class: "ll-brush", text: rank, title }, input);
    tint(swatch, rank);
    return swatch;
  }

  /** Enable what can be done now. */
  draw() {
    const { buttons, store } = this;
    const { locked } = this.view;
    const roles = new Set(store.roles.map(lastPart));
    const disabled = {
      paper: locked || !(store.roles.includes("q") && store.roles.includes("v")),
      all: locked,
      attention: locked || !ATTENTION.some((role) => roles.has(role)),
      last: locked,
      clear: locked || !Object.keys(store.ranks).length,
      undo: locked || !store.past.length,
      redo: locked || !store.future.length,
    };
    for (const [key, value] of Object.entries(disabled)) {
      buttons[key].setAttribute("aria-disabled", String(value));
    }
    buttons.copy.hidden = !this.model.get("code");
    for (const input of this.brushes.querySelectorAll("input")) input.disabled = locked;
  }

  /** All but copying: every method has its config. */
  setInert(inert) {
    const { copy, undo, redo } = this.buttons;
    const others = [...this.bar.children].filter((node) => !node.contains(copy));
    for (const node of [this.brushes, ...others, undo, redo]) {
      /** @type {HTMLElement} */ (node).inert = inert;
    }
  }

  // ---- copying

  /** `coded_ranks` says which ranks `code` is for: Python may not have answered yet. */
  get codeIsStale() {
    return !sameRanks(this.model.get("coded_ranks"), this.store.ranks);
  }

  async copy() {
    this.copying = this.codeIsStale;
    if (this.copying) this.view.say("waiting for the kernel…");
    else if (await copyText(this.model.get("code"))) this.view.say("copied");
    else this.view.say("the browser forbids copying; print .code in a cell");
  }

  finishCopy() {
    if (this.copying && !this.codeIsStale) this.copy();
  }
}

/** "cross.q" → "q". */
export function lastPart(role) {
  return role.split(".").at(-1);
}
