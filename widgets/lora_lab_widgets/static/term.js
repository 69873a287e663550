// @ts-check
// The "?" beside a term: opens what the glossary says of it, over the page, so that nothing moves.
// It is no <button>: those of a form that waits for a run to end cannot be pressed.

import { el } from "./_shared.js";
import { placeBeside, popover } from "./popover.js";

// {key: [title, text, equation, source]}; panel.py puts those in that a panel names.
/** @type {Record<string, [title: string, text: string, equation: string, source: string]>} */
const GLOSSARY = {};

let terms = 0; // what is opened needs a name of its own on its page

/**
 * The "?" of these terms, which panel.py reads from here: name them as they are.
 * @param {string | string[]} keys
 * @param {() => [name: string, text: string][]} [facts] what this model has of them
 */
export function term(keys, facts) {
  return new Term(() => [keys].flat(), facts).node;
}

/** A term's title, "" where the glossary does not have it. */
export function termTitle(key) {
  return Object.hasOwn(GLOSSARY, key) ? GLOSSARY[key][0] : "";
}

let fields = 0; // a caption names its input by an id of its own on the page

/**
 * A field of a form: a caption with its "?" above an input. It is no label around them: the "?"
 * would be a part of the input's name.
 * @param {string} label
 * @param {HTMLElement} input
 * @param {HTMLElement} mark
 * @param {{class?: string, title?: string}} [attributes]
 */
export function explainedField(label, input, mark, attributes = {}) {
  fields += 1;
  input.id = `ll-field-${fields}-${Math.random().toString(36).slice(2, 8)}`;
  return el("div", { ...attributes, class: `ll-field ${attributes.class ?? ""}`.trim() },
    el("span", { class: "ll-caption" },
      el("label", { class: "ll-dim", for: input.id, text: label }), mark),
    input);
}

/** A "?" whose terms depend on what is on show; while there are none it is hidden. */
export class Term {
  /**
   * @param {() => string[]} keys those that the glossary does not have are passed over
   * @param {() => [name: string, text: string][]} [facts]
   */
  constructor(keys, facts = () => []) {
    this.keys = () => keys().filter((key) => Object.hasOwn(GLOSSARY, key));
    this.facts = facts;
    terms += 1;
    this.text = popover({
      class: "ll-term-text", id: `ll-term-${terms}-${Math.random().toString(36).slice(2, 8)}`,
    });
    this.button = el("span", {
      class: "ll-term-mark", role: "button", tabindex: 0, text: "?",
      "aria-expanded": "false", "aria-controls": this.text.id, "aria-label": "what is this?",
      on: { click: () => this.toggle() },
    });
    this.node = el("span", {
      class: "ll-term", "data-lm-suppress-shortcuts": "true",
      on: { keydown: (event) => this.onKey(event) },
    }, this.button, this.text);
    // A click or the focus elsewhere closes it; what scrolls takes it along.
    this.away = (event) => event.composedPath().includes(this.node) || this.close();
    this.follow = () => (this.node.isConnected ? this.place() : this.close());
    this.draw();
  }

  get open() {
    return this.button.getAttribute("aria-expanded") === "true";
  }

  /** What it explains has changed. */
  draw() {
    const titles = this.keys().map((key) => GLOSSARY[key][0]);
    this.node.hidden = !titles.length;
    this.button.setAttribute("aria-label", `what is ${titles.join(", ")}?`);
  }

  toggle() {
    if (this.open) this.close();
    else this.show();
  }

  show() {
    this.draw();
    const keys = this.keys();
    if (!keys.length) return;
    this.text.replaceChildren(...keys.flatMap(explanation), ...this.factList());
    this.text.setAttribute("aria-label", keys.map((key) => GLOSSARY[key][0]).join(", "));
    this.button.setAttribute("aria-expanded", "true");
    this.text.showPopover();
    this.place();
    this.text.focus({ preventScroll: true }); // so that it is read out
    this.listen("addEventListener");
  }

  close() {
    if (!this.open) return;
    this.listen("removeEventListener");
    this.button.setAttribute("aria-expanded", "false");
    if (this.text.isConnected) this.text.hidePopover();
  }

  /** @param {"addEventListener" | "removeEventListener"} way */
  listen(way) {
    for (const event of ["pointerdown", "focusin"]) document[way](event, this.away, true);
    document[way]("scroll", this.follow, true);
    window[way]("resize", this.follow);
  }

  onKey(event) {
    const { key, target } = event;
    if (key === "Escape" && this.open) {
      this.close();
      this.button.focus({ preventScroll: true });
    } else if (target === this.button && (key === "Enter" || key === " ")) this.toggle();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  place() {
    placeBeside(this.text, this.button);
  }

  factList() {
    const facts = this.facts();
    if (!facts.length) return [];
    const list = el("dl", { class: "ll-term-facts" }, ...facts.flatMap(([name, text]) =>
      [el("dt", { text: name }), el("dd", { text })]));
    return [list];
  }
}

function explanation(key) {
  const [title, text, equation, source] = GLOSSARY[key];
  const nodes = [el("b", { text: title }), el("p", { text })];
  if (equation) nodes.push(el("p", { class: "ll-term-equation", text: equation }));
  if (source) nodes.push(el("p", { class: "ll-dim", text: source }));
  return nodes;
}
