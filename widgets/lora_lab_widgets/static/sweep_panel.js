// Many runs in a row. Draws `form`, `plan`, `progress`, `rows`; what people do goes out as messages.

import { el, formatCount, listen } from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { recipeBox } from "./recipe_box.js";
import { shownRanks } from "./shown_ranks.js";

const AXES = [
  ["r", "ranks", "4, 8, 16", "every painted matrix gets this rank"],
  ["learning_rate", "learning rates", "5e-4, 2e-3", "peak rates of AdamW"],
  ["seed", "seeds", "0, 1", "of the adapter's start, the data's order and dropout"],
  ["target_modules", "targets", "q+v, q+k+v+o", "roles, joined by +; all: every matrix"],
  ["layers", "layers", "0-14, 15-29", "of what is painted only the matrices in these layers"],
  ["method", "methods", "LoRA, BitFit", "the names in the run's drop-down; a rank changes those that have one"],
];
const OTHERS = [
  ["stop_at", "stop early at step", "never", "ASHA: at this step, and at 3, 9 … times it, only the best third so far goes on"],
  ["name", "name", "sweep", "of its folder among the runs; cells that are finished there are skipped"],
];
const TYPING_MS = 350; // after the last key, Python counts the cells
const CELL_HEADS = ["", "what is tried", "state", "held-out loss", "metric", "steps", ""];

/** The text fields: {node, draw(values), values(), blame(field), lock(flag)}. */
function sweepForm(changed) {
  const inputs = {};
  let timer = 0;
  const tell = () => {
    clearTimeout(timer);
    timer = setTimeout(changed, TYPING_MS);
  };
  const field = ([name, label, example, hint]) => {
    const input = el("input", { class: "ll-input", name, type: "text", placeholder: example, autocomplete: "off", spellcheck: "false", maxlength: 300 });
    input.addEventListener("input", tell);
    inputs[name] = input;
    return el("label", { class: "ll-sweep-field", title: hint }, el("span", { class: "ll-dim", text: label }), input);
  };
  const node = el("fieldset", { class: "ll-sweep-form", "aria-label": "what the sweep tries" }, ...[...AXES, ...OTHERS].map(field));
  const draw = (values) => {
    for (const [name, input] of Object.entries(inputs)) {
      // A text under the user's hands stays as typed.
      if (input.getRootNode().activeElement !== input) input.value = values[name] ?? "";
    }
  };
  const values = () => {
    clearTimeout(timer);
    return Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
  };
  const blame = (bad) => {
    for (const [name, input] of Object.entries(inputs)) {
      if (name === bad) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    }
  };
  return { node, draw, values, blame, stop: () => clearTimeout(timer) };
}

/** The cells as they stand: {node, draw(rows)}. */
function cellTable() {
  const body = el("div", { role: "rowgroup" });
  const head = el("div", { class: "ll-sweep-row ll-sweep-head ll-dim", role: "row" },
    ...CELL_HEADS.map((text) => el("span", { role: "columnheader", text })));
  const node = el("div", { class: "ll-sweep-cells", role: "table", "aria-label": "cells of the sweep", tabindex: 0 },
    el("div", { role: "rowgroup" }, head), body);
  const cell = (name, ...children) => el("span", { class: `ll-sweep-${name}`, role: "cell" }, ...children);
  const show = (value) => (value === null || value === undefined ? "–" : value.toFixed(value < 10 ? 3 : 1));
  const row = (each) => {
    const node_ = el("div", { class: "ll-sweep-row", role: "row" },
      cell("rank", ...(each.best ? [el("b", { text: "best" })] : [])),
      cell("what", each.what),
      cell("state", el("i", { class: "ll-run-lamp", "aria-hidden": "true" }), el("span", { text: each.state })),
      cell("loss", show(each.loss)),
      cell("metric", each.metric || "–"),
      cell("steps", each.step ? `${formatCount(each.step)} / ${formatCount(each.steps)}` : "–"),
      cell("note", each.note));
    node_.dataset.llState = each.state;
    if (each.best) node_.dataset.llBest = "";
    return node_;
  };
  const draw = (rows) => {
    node.hidden = !rows.length;
    body.replaceChildren(...rows.map(row));
  };
  return { node, draw };
}

function render({ model, el: host, signal }) {
  const door = el("button", { class: "ll-button", type: "button" });
  door.addEventListener("click", () => {
    door.disabled = true; // until Python has answered
    model.send({ type: "open", value: !model.get("form").open });
  });
  const form = sweepForm(() => model.send({ type: "set", values: form.values() }));
  const useWhatIsShown = (type) => model.send({ type, values: form.values(), ...shownRanks(model.get("bench")) });
  const planned = el("span", { class: "ll-sweep-plan", role: "status" });
  const start = el("button", { class: "ll-button ll-primary", type: "button", "aria-label": "Start the sweep" });
  start.append(el("span", { "aria-hidden": "true", text: "▶" }), "Start");
  const stop = el("button", { class: "ll-button", type: "button", "aria-label": "Stop the sweep" });
  stop.append(el("span", { "aria-hidden": "true", text: "■" }), "Stop");
  start.addEventListener("click", () => {
    start.disabled = true; // until Python has answered
    useWhatIsShown("start");
  });
  stop.addEventListener("click", () => {
    stop.disabled = true;
    model.send({ type: "stop" });
  });
  const recipe = recipeBox(() => useWhatIsShown("write"));
  recipe.button.textContent = "Write sweep.yaml";
  recipe.button.title = "the same cells as a file, for lora-lab sweep on another machine or a Ray cluster";

  const line = el("b");
  const left = el("span", { class: "ll-dim" });
  const lamp = el("span", { class: "ll-run-lamp", "aria-hidden": "true" });
  const state = el("span");
  const fill = el("i");
  const bar = el("div", { class: "ll-progress", role: "progressbar", "aria-label": "cells of the sweep", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const told = el("span");
  const folder = el("span", { class: "ll-sweep-folder" });
  const hidden = el("p", { class: "ll-dim ll-sweep-hidden" });
  const spoken = el("span", { class: "ll-sr", role: "status", "aria-live": "polite" });
  const table = cellTable();
  const going = el("div", { class: "ll-card ll-sweep-going" },
    el("div", { class: "ll-sweep-line" }, line, el("span", { class: "ll-space" }), left,
      el("span", { class: "ll-sweep-state ll-dim" }, lamp, state)),
    bar, el("div", { class: "ll-sweep-line ll-sweep-told ll-dim" }, told, el("span", { class: "ll-space" }), folder),
    table.node, hidden);
  const strip = errorStrip();
  const body = el("div", { class: "ll-sweep-body" },
    form.node,
    el("div", { class: "ll-sweep-line" }, start, stop, planned, el("span", { class: "ll-space" }), recipe.button),
    recipe.node, strip.node, going);
  const root = el(
    "section",
    { class: "ll-panel ll-sweep", "aria-label": "sweep", "data-lm-suppress-shortcuts": "true" },
    el("div", { class: "ll-head" },
      el("span", { class: "ll-title", text: "Sweep" }),
      el("span", { text: "many runs in a row: ranks, rates, seeds, methods" }),
      el("span", { class: "ll-space" }), door),
    body, spoken,
  );

  const isGoing = () => ["running", "stopping"].includes(model.get("progress").state);
  const drawButtons = () => {
    const { bad, cells } = model.get("plan");
    start.disabled = isGoing() || bad || !cells;
    stop.disabled = model.get("progress").state !== "running";
    form.node.disabled = isGoing();
    recipe.button.disabled = bad || !cells;
  };
  const drawForm = () => {
    const { open, values } = model.get("form");
    door.disabled = false;
    door.textContent = open ? "Close" : "Open the sweep";
    door.setAttribute("aria-expanded", String(open));
    body.hidden = !open;
    form.draw(values);
  };
  const drawPlan = () => {
    const { line: text, bad, field } = model.get("plan");
    planned.textContent = text;
    planned.classList.toggle("ll-sweep-bad", bad);
    form.blame(field);
    drawButtons();
  };
  const drawProgress = () => {
    const p = model.get("progress");
    going.hidden = !p.state;
    drawButtons();
    if (!p.state) return;
    root.dataset.llState = p.state;
    line.textContent = p.line;
    left.textContent = p.left;
    state.textContent = p.state === "stopping" ? "stopping at the next step" : p.state;
    const percent = Math.round(100 * p.share);
    fill.style.width = `${percent}%`;
    bar.setAttribute("aria-valuenow", percent);
    bar.setAttribute("aria-valuetext", `${p.ended} of ${p.total} cells`);
    told.textContent = p.problem || p.told;
    told.classList.toggle("ll-sweep-bad", Boolean(p.problem));
    folder.textContent = p.folder;
    hidden.hidden = !p.hidden;
    hidden.textContent = `and ${formatCount(p.hidden)} more cells, which are in the sweep's results()`;
    const said = `sweep: ${p.state}, ${p.ended} of ${p.total} cells`; // no steps: these are not read out
    if (spoken.textContent !== said) spoken.textContent = said;
  };
  const drawRows = () => table.draw(model.get("rows"));
  const drawProblem = () => {
    strip.draw(model.get("problem"));
    drawButtons();
  };
  const unlisten = listen(model, {
    "change:form": drawForm,
    "change:plan": drawPlan,
    "change:progress": drawProgress,
    "change:rows": drawRows,
    "change:recipe": () => recipe.draw(model.get("recipe")),
    "change:problem": drawProblem,
    "msg:custom": () => {
      door.disabled = false;
      drawButtons();
    },
  });
  // A notebook's own shortcuts must not take what is typed here.
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" && event.target.matches("input")) model.send({ type: "set", values: form.values() });
  });
  host.append(root);
  drawForm();
  drawPlan();
  drawProgress();
  drawRows();
  recipe.draw(model.get("recipe"));
  drawProblem();
  const cleanup = () => {
    form.stop();
    unlisten();
    root.remove();
  };
  signal?.addEventListener("abort", cleanup);
  return cleanup;
}

export default { render };
