// @ts-check
// One control of "Analyze ΔW": a slider, a drop-down, a box to tick, a line of text.

import { el, focusIn } from "./_shared.js";

const KINDS = { choice: choiceOf, slider: sliderOf, box: boxOf };

/**
 * {node, draw(description)}: `draw` brings it up to date without taking it out of people's hands.
 * What people set goes out by `messenger`, a slider's values no faster than they are answered.
 */
export function control({ name, kind, label, hint }, messenger) {
  const caption = el("span", { class: "ll-dim", text: label });
  const set = (value, sliding = false) => {
    const message = { type: "set", name, value, sliding };
    if (sliding) messenger.slide(message);
    else messenger.post(message);
  };
  const { parts, draw } = (KINDS[kind] ?? textOf)(name, caption, set);
  const node = el("label", { class: `ll-lab-field ll-lab-${kind}`, title: hint || null }, ...parts);
  return { node, draw };
}

function choiceOf(name, caption, set) {
  const input = el("select", { class: "ll-input", name, on: { change: () => set(input.value) } });
  let known = "";
  const draw = ({ options, value }) => {
    if (JSON.stringify(options) !== known) {
      known = JSON.stringify(options);
      input.replaceChildren(...options.map(([text, key]) => el("option", { value: key, text })));
    }
    input.value = value;
  };
  return { parts: [caption, input], draw };
}

function sliderOf(name, caption, set) {
  const mark = el("output", { class: "ll-lab-mark" });
  let marks = [];
  let held = false;
  const say = () => {
    mark.textContent = marks[Number(input.value)] ?? "";
    input.setAttribute("aria-valuetext", mark.textContent);
  };
  const slide = () => {
    held = true;
    say();
    set(Number(input.value), true);
  };
  const drop = () => {
    held = false;
    set(Number(input.value));
  };
  const input = el("input", {
    type: "range", name, min: 0, step: 1, on: { input: slide, change: drop },
  });
  const draw = (description) => {
    marks = description.marks;
    input.max = String(Math.max(0, marks.length - 1));
    input.disabled = marks.length < 2;
    if (!held) input.value = description.value;
    // As wide as the widest mark: nothing moves while it is dragged.
    mark.style.minWidth = `${Math.max(0, ...marks.map((text) => text.length))}ch`;
    say();
  };
  return { parts: [caption, input, mark], draw };
}

function boxOf(name, caption, set) {
  caption.className = ""; // it stands behind the box, as dark as the box is
  const input = el("input", { type: "checkbox", name, on: { change: () => set(input.checked) } });
  const draw = ({ value }) => {
    input.checked = value;
  };
  return { parts: [input, caption], draw };
}

function textOf(name, caption, set) {
  const input = el("input", {
    class: "ll-input", type: "text", name, spellcheck: "false", autocomplete: "off",
    on: { change: () => set(input.value) },
  });
  const draw = ({ value }) => {
    if (focusIn(input) !== input) input.value = value;
  };
  return { parts: [caption, input], draw };
}
