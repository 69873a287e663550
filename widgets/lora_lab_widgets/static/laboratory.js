// The laboratory's tabs and controls. Draws `form`, `state` and `problem`; the figure below is
// Python's. Nothing is written back: what people do goes out as messages, each answered by "seen".

import { el, listen } from "./_shared.js";
import { errorStrip } from "./error_strip.js";

const PATIENCE_MS = 3000; // after so long without an answer the next message goes out anyway

/** Sends at once, but for sliders: those wait for the last answer, and only the newest goes out. */
function messenger(model) {
  const page = Math.random().toString(36).slice(2, 8);
  let count = 0;
  let waiting = null;
  let held = null;
  let timer = 0;
  const post = (message) => {
    count += 1;
    waiting = `${page}-${count}`;
    held = null;
    clearTimeout(timer);
    timer = setTimeout(() => seen({ type: "seen", seq: waiting }), PATIENCE_MS);
    model.send({ ...message, seq: waiting });
  };
  const seen = (answer) => {
    if (answer.type !== "seen" || answer.seq !== waiting) return;
    waiting = null;
    clearTimeout(timer);
    if (held) post(held);
  };
  model.on("msg:custom", seen);
  return {
    post,
    slide: (message) => {
      if (waiting === null) post(message);
      else held = message;
    },
    close: () => {
      clearTimeout(timer);
      model.off("msg:custom", seen);
    },
  };
}

/** One control; `draw(description)` brings it up to date without taking it out of people's hands. */
function control({ name, kind, label, hint }, send) {
  const set = (value, sliding = false) =>
    (sliding ? send.slide : send.post)({ type: "set", name, value, sliding });
  const caption = el("span", { class: "ll-dim", text: label });
  const wrap = (...parts) => el("label", { class: `ll-lab-field ll-lab-${kind}`, title: hint || null }, ...parts);
  const free = (input) => input.getRootNode().activeElement !== input;
  if (kind === "choice") {
    const input = el("select", { class: "ll-input", name });
    input.addEventListener("change", () => set(input.value));
    let known = "";
    const draw = ({ options, value }) => {
      if (JSON.stringify(options) !== known) {
        known = JSON.stringify(options);
        input.replaceChildren(...options.map(([text, key]) => el("option", { value: key, text })));
      }
      input.value = value;
    };
    return { node: wrap(caption, input), draw };
  }
  if (kind === "slider") {
    const input = el("input", { type: "range", name, min: 0, step: 1 });
    const shown = el("output", { class: "ll-lab-mark" });
    let marks = [];
    const say = () => {
      shown.textContent = marks[input.value] ?? "";
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    let held = false;
    input.addEventListener("input", () => {
      held = true;
      say();
      set(Number(input.value), true);
    });
    input.addEventListener("change", () => {
      held = false;
      set(Number(input.value));
    });
    const draw = (news) => {
      marks = news.marks;
      input.max = Math.max(0, marks.length - 1);
      input.disabled = marks.length < 2;
      if (!held) input.value = news.value;
      // As wide as the widest mark: nothing moves while it is dragged.
      shown.style.minWidth = `${Math.max(0, ...marks.map((mark) => mark.length))}ch`;
      say();
    };
    return { node: wrap(caption, input, shown), draw };
  }
  if (kind === "box") {
    const input = el("input", { type: "checkbox", name });
    input.addEventListener("change", () => set(input.checked));
    return { node: wrap(input, el("span", { text: label })), draw: ({ value }) => { input.checked = value; } };
  }
  const input = el("input", { class: "ll-input", type: "text", name, spellcheck: "false", autocomplete: "off" });
  input.addEventListener("change", () => set(input.value));
  return { node: wrap(caption, input), draw: ({ value }) => { if (free(input)) input.value = value; } };
}

function controlRow(send) {
  const node = el("div", { class: "ll-lab-controls" });
  let built = "";
  let parts = [];
  const draw = (view, controls) => {
    const shape = JSON.stringify([view, controls.map(({ name, kind, label }) => [name, kind, label])]);
    if (shape !== built) {
      built = shape;
      const focused = node.getRootNode().activeElement?.getAttribute?.("name");
      parts = controls.map((each) => control(each, send));
      node.replaceChildren(...parts.map((part) => part.node));
      if (focused) node.querySelector(`[name="${CSS.escape(focused)}"]`)?.focus();
    }
    controls.forEach((each, i) => parts[i].draw(each));
    node.hidden = !controls.length;
  };
  return { node, draw };
}

function tabList(choose) {
  const node = el("div", { class: "ll-lab-tabs", role: "tablist", "aria-label": "views of ΔW" });
  const tabs = new Map();
  node.addEventListener("keydown", (event) => {
    const keys = [...tabs.keys()];
    const at = keys.findIndex((key) => tabs.get(key) === event.target);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: keys.length - 1 }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    const key = keys[(next + keys.length) % keys.length];
    tabs.get(key).focus();
    choose(key);
  });
  const draw = (views, chosen) => {
    for (const [key, title] of views) {
      if (tabs.has(key)) continue;
      const tab = el("button", { class: "ll-lab-tab", type: "button", role: "tab", text: title, "data-title": title });
      tab.addEventListener("click", () => choose(key));
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

function render({ model, el: host, signal }) {
  const send = messenger(model);
  const door = el("button", { class: "ll-button", type: "button" });
  door.addEventListener("click", () => {
    door.disabled = true; // until Python has answered
    send.post({ type: "open", value: !model.get("form").open });
  });
  const tabs = tabList((name) => send.post({ type: "view", name }));
  const question = el("p", { class: "ll-lab-question ll-dim" });
  const controls = controlRow(send);
  const fill = el("i");
  const bar = el("div", { class: "ll-lab-progress", role: "progressbar", "aria-label": "measuring", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const said = el("span", { role: "status" });
  const again = el("button", { class: "ll-button", type: "button", text: "Look again" });
  const cancel = el("button", { class: "ll-button", type: "button", text: "Cancel" });
  again.addEventListener("click", () => send.post({ type: "again" }));
  cancel.addEventListener("click", () => send.post({ type: "cancel" }));
  const status = el("div", { class: "ll-lab-status ll-dim" }, said, bar, cancel, again);
  const strip = errorStrip();
  const body = el("div", { class: "ll-lab-body" }, tabs.node,
    el("div", { class: "ll-lab-line" }, question, status), controls.node, strip.node);
  const root = el(
    "section",
    { class: "ll-panel ll-lab", "aria-label": "laboratory", "data-lm-suppress-shortcuts": "true" },
    el("div", { class: "ll-head" },
      el("span", { class: "ll-title", text: "Laboratory" }),
      el("span", { text: "what ΔW has learnt, and how it lies against W₀" }),
      el("span", { class: "ll-space" }), door),
    body,
  );

  const drawForm = () => {
    const form = model.get("form");
    door.disabled = false;
    door.textContent = form.open ? "Close" : "Open the laboratory";
    door.setAttribute("aria-expanded", String(form.open));
    body.hidden = !form.open;
    root.dataset.llView = form.open ? form.view : "";
    if (!form.open) return;
    tabs.draw(form.views, form.view);
    question.textContent = form.question;
    controls.draw(form.view, form.controls);
  };
  const drawState = () => {
    const { busy = "", share = 0, note = "", again: may = false } = model.get("state");
    root.dataset.llState = busy ? "busy" : "rest";
    said.textContent = busy || note;
    again.hidden = Boolean(busy);
    again.disabled = !may;
    cancel.hidden = bar.hidden = !busy;
    fill.style.width = `${Math.round(100 * share)}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * share));
  };
  const drawProblem = () => strip.draw(model.get("problem"));
  const unlisten = listen(model, {
    "change:form": drawForm,
    "change:state": drawState,
    "change:problem": drawProblem,
  });
  // A notebook's own shortcuts must not take what is typed here.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  host.append(root);
  drawForm();
  drawState();
  drawProblem();
  const cleanup = () => {
    send.close();
    unlisten();
    root.remove();
  };
  signal?.addEventListener("abort", cleanup);
  return cleanup;
}

export default { render };
