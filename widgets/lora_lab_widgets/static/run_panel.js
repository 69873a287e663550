// The run's controls, progress, loss, memory and errors. Draws `snapshot`; sends messages; never
// writes a trait back, so that Python stays the only writer.

import { el, formatBytes, listen } from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { formatLoss, lossChart, lossTable, place } from "./loss_chart.js";
import { recipeBox } from "./recipe_box.js";
import { joinClock, roomIn, watchSight, workbenchOf } from "./run_clock.js";
import { shownRanks } from "./shown_ranks.js";

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
  ["init_r", "init_r", "rank of every painted matrix at the start; empty: 1.5 times the painted one"],
  ["tinit", "tinit", "steps before the first cut; empty: 13 % of all"],
  ["tfinal", "tfinal", "steps after the last cut; empty: 48 % of all"],
  ["deltaT", "deltaT", "steps from one cut to the next; empty: 0.2 % of all, at least 1"],
  ["top_layers", "top blocks", "how many of the last blocks are trained"],
  ["new_biases", "new zero biases", "give linear layers without a bias a new one of zeros"],
  ["prefix_length", "prefix l_p", "learned tokens before the prompt"],
  ["infix_length", "infix l_i", "learned tokens behind the prompt"],
  ["r", "bottleneck r", "width of the adapter layers"],
  ["drop_layers", "drop layers", "of the lowest blocks, which answer without their adapters; empty: 5, or all but one"],
];
const CHOICES = new Set(["task", "method"]);
const TICKED = new Set(["new_biases"]);
const OPEN_STATES = ["queued", "running", "pausing", "paused", "stopping"];
const PHASE_STATES = ["queued", "running"]; // what they are at says more than their name
const STATE_TEXTS = { idle: "ready", pausing: "pausing at the next step", stopping: "stopping at the next step" };
const PRIMARY = {
  running: ["pause", "❚❚", "Pause"],
  pausing: ["pause", "❚❚", "Pause"],
  paused: ["resume", "▶", "Resume"],
  stopping: ["pause", "❚❚", "Pause"],
};

function formatTime(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}

function formatRate(rate) {
  return rate >= 1 ? `${rate.toFixed(1)} steps/s` : `${(1 / rate).toFixed(1)} s/step`;
}

const METRIC_LABELS = {
  loss: "held-out loss",
  bleu: "BLEU",
  accuracy: "accuracy (%)",
  matthews: "Matthews × 100",
};

/** "BLEU 12.1 → 38.2" from {bleu_before, bleu_after}. */
function formatMetrics(metrics) {
  const names = [...new Set(Object.keys(metrics).map((name) => name.replace(/_(before|after)$/, "")))];
  const show = (value) => (value === null || value === undefined ? null : value.toPrecision(3));
  return names
    .map((name) => {
      const before = show(metrics[`${name}_before`]);
      const after = show(metrics[`${name}_after`]);
      const label = METRIC_LABELS[name] ?? name;
      return after ? `${label} ${before} → ${after}` : `${label} ${before ?? "–"} before`;
    })
    .join(" · ");
}

/** What the user typed: a number where it is one, else the text, for Python to judge. */
function parseField(name, input) {
  if (TICKED.has(name)) return input.checked;
  const text = input.value;
  const number = Number(text.trim().replace(",", "."));
  return CHOICES.has(name) || text.trim() === "" || Number.isNaN(number) ? text.trim() : number;
}

function inputFor(name) {
  if (CHOICES.has(name)) return el("select", { class: "ll-input", name });
  if (TICKED.has(name)) return el("input", { class: "ll-tick", name, type: "checkbox" });
  return el("input", { class: "ll-input", name, type: "text", inputmode: "decimal", autocomplete: "off" });
}

function settingsForm(model, changed) {
  const inputs = {};
  const fields = {};
  const build = ([name, label, hint]) => {
    const input = inputFor(name);
    inputs[name] = input;
    input.addEventListener("change", () => changed({ [name]: parseField(name, input) }));
    fields[name] = el("label", { class: "ll-field", title: hint }, el("span", { class: "ll-dim", text: label }), input);
    return fields[name];
  };
  const line = el("div", { class: "ll-method-line", "aria-live": "polite" });
  const node = el("fieldset", { class: "ll-form", "aria-label": "settings of the next run" },
    el("div", { class: "ll-settings ll-method" }, ...METHOD_FIELDS.map(build)),
    line,
    el("div", { class: "ll-settings" }, ...FIELDS.map(build)));
  const drawTasks = () => {
    inputs.task.replaceChildren(...model.get("tasks").map((task) => el("option", { value: task, text: task })));
    inputs.task.value = model.get("settings").task;
  };
  const drawMethods = () => {
    const { method } = inputs;
    method.replaceChildren(...model.get("methods").map(({ name, text }) => el("option", { value: name, text })));
    method.value = model.get("settings").method;
    drawMethod();
  };
  /** The chosen method's own fields, at once: Python's word on them comes with its answer. */
  const drawMethod = () => {
    const shown = model.get("methods").find(({ name }) => name === inputs.method.value)?.fields ?? [];
    for (const [name] of METHOD_FIELDS) fields[name].hidden = name !== "method" && !shown.includes(name);
  };
  const drawPlan = () => {
    const { line: text, bad, automatic } = model.get("plan");
    if (line.textContent !== (text ?? "")) line.textContent = text ?? "";
    line.title = text ?? "";
    line.classList.toggle("ll-method-bad", Boolean(bad));
    for (const [name, value] of Object.entries(automatic ?? {})) inputs[name].placeholder = value;
  };
  const draw = () => {
    for (const [name, value] of Object.entries(model.get("settings"))) {
      const input = inputs[name];
      if (!input) continue;
      if (TICKED.has(name)) input.checked = value === true;
      // A value under the user's hands stays as typed.
      else if (input.getRootNode().activeElement !== input || CHOICES.has(name)) input.value = value;
    }
    drawMethod();
  };
  const values = () => Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, parseField(name, input)]));
  const blame = (field) => {
    for (const [name, input] of Object.entries(inputs)) input.toggleAttribute("aria-invalid", name === field);
    inputs[field]?.setAttribute("aria-invalid", "true");
  };
  drawTasks();
  drawMethods();
  draw();
  drawPlan();
  return { node, draw, drawTasks, drawMethods, drawPlan, values, blame };
}

function render({ model, el: host, signal }) {
  let clock;
  const form = settingsForm(model, (changes) => {
    // The other views of this page follow at once; Python's word comes with its answer.
    model.set("settings", { ...model.get("settings"), ...changes });
    clock.send(model, { type: "settings", settings: changes });
  });
  const command = (name) => clock.send(model, { type: "command", name, settings: {} });
  /** A command that takes what is on show: settings still being typed, ranks that Python has not heard of. */
  const useWhatIsShown = (name) =>
    clock.send(model, { type: "command", name, settings: form.values(), ...shownRanks(model.get("bench")) });

  const symbol = el("span", { "aria-hidden": "true" });
  const verb = el("span");
  const primary = el("button", { class: "ll-button ll-primary ll-run-primary", type: "button" }, symbol, verb);
  const stop = el("button", { class: "ll-button", type: "button", "aria-label": "Stop" });
  stop.append(el("span", { "aria-hidden": "true", text: "■" }), "Stop");
  let action = "start";
  primary.addEventListener("click", () => (action === "start" ? useWhatIsShown : command)(action));
  stop.addEventListener("click", () => command("stop"));

  const step = el("b", { class: "ll-run-step" });
  const stats = Object.fromEntries(
    ["time", "rate", "loss", "metrics"].map((name) => [name, el("span", { class: `ll-run-${name}` })]),
  );
  const phase = el("span", { class: "ll-run-phase" });
  const busy = el("span", { class: "ll-run-busy", title: "it answers when the running cell ends", text: "· kernel busy", hidden: true });
  const id = el("span", { class: "ll-run-id" });
  const lamp = el("span", { class: "ll-run-lamp", "aria-hidden": "true" });
  const fillBar = el("i");
  const progress = el("div", { class: "ll-progress", role: "progressbar", "aria-label": "training steps", "aria-valuemin": 0 }, fillBar);
  const spoken = el("span", { class: "ll-sr", role: "status", "aria-live": "polite" });
  const memory = el("span", { class: "ll-run-memory" });
  const chart = lossChart();
  const table = lossTable();
  const strip = errorStrip(() => command("take"));
  const recipe = recipeBox(() => useWhatIsShown("recipe"));
  const root = el(
    "section",
    { class: "ll-panel ll-run", "aria-label": "training run", "data-lm-suppress-shortcuts": "true" },
    form.node,
    el("div", { class: "ll-card" },
      el("div", { class: "ll-run-row" },
        primary, stop, step, el("span", { class: "ll-space" }),
        el("span", { class: "ll-run-state ll-dim" }, lamp, phase, busy)),
      progress,
      el("div", { class: "ll-run-stats ll-dim" }, ...Object.values(stats)),
      strip.node, chart.node, table.node,
      el("div", { class: "ll-run-row ll-run-foot ll-dim" }, memory, el("span", { class: "ll-space" }), id, recipe.button),
      recipe.node),
    spoken,
  );

  let drawn = "";
  const drawNews = () => {
    const { seq, ...news } = model.get("snapshot");
    if (JSON.stringify(news) !== drawn) draw();
  };
  const draw = () => {
    const { seq, ...s } = model.get("snapshot");
    drawn = JSON.stringify(s);
    const open = OPEN_STATES.includes(s.state);
    root.dataset.llState = s.state;
    root.dataset.llStep = s.step;
    let sign;
    [action, sign, verb.textContent] = PRIMARY[s.state] ?? ["start", "▶", "Start"];
    symbol.textContent = sign;
    primary.setAttribute("aria-label", verb.textContent);
    primary.hidden = s.state === "queued"; // it starts by itself; Stop takes it out of the line
    primary.disabled = s.state === "pausing" || s.state === "stopping";
    stop.disabled = !open || s.state === "stopping";
    form.node.disabled = open;

    const total = s.total_steps;
    step.textContent = total ? `step ${String(s.step).padStart(String(total).length, "\u2007")} / ${total}` : "no run yet";
    if (open) stats.time.textContent = s.eta === null ? "" : `${formatTime(s.eta)} left`;
    else stats.time.textContent = s.elapsed ? `took ${formatTime(s.elapsed)}` : "";
    stats.rate.textContent = s.rate ? formatRate(s.rate) : "";
    stats.loss.textContent = s.loss === null ? "" : `loss ${formatLoss(s.loss)}`;
    stats.metrics.textContent = formatMetrics(s.metrics);
    fillBar.style.width = total ? `${(100 * Math.min(s.step, total)) / total}%` : "0";
    place(progress, { "aria-valuenow": s.step, "aria-valuemax": total || 1, "aria-valuetext": step.textContent });

    const said = STATE_TEXTS[s.state] ?? (PHASE_STATES.includes(s.state) && s.phase ? s.phase : s.state);
    phase.textContent = said;
    if (spoken.textContent !== `run: ${said}`) spoken.textContent = `run: ${said}`;
    id.textContent = s.run_id;
    strip.draw(s.problem);
    form.blame(s.problem?.field);
    chart.draw(s.losses, total || Number(model.get("settings").max_steps) || 0);
    table.draw(s.losses);
    memory.textContent = s.memory
      ? `memory ${formatBytes(s.memory.current)} now · ${formatBytes(s.memory.peak)} at the peak · ${s.memory.kind}`
      : "memory: measured while training";
  };

  const view = {
    model,
    visible: false,
    width: () => roomIn(workbenchOf(root)),
    busy: (flag) => { busy.hidden = !flag; },
  };
  const [joined, leave] = joinClock(view);
  clock = joined;
  const unlisten = listen(model, {
    "change:snapshot": () => {
      drawNews();
      clock.heard(model.get("snapshot"));
    },
    "change:settings": () => {
      form.draw();
      draw();
    },
    "change:tasks": form.drawTasks,
    "change:methods": form.drawMethods,
    "change:plan": form.drawPlan,
    "change:recipe": () => recipe.draw(model.get("recipe")),
  });
  const unwatch = watchSight(root, (visible) => {
    view.visible = visible;
    clock.plan();
  });
  let width = 0;
  const sizes = new ResizeObserver(() => {
    chart.resize(Math.floor(chart.node.parentElement.clientWidth - 24));
    if (width && width !== view.width()) clock.hurry(); // the figures are as wide as Python is told
    width = view.width();
  });
  sizes.observe(root);
  // A notebook's own shortcuts must not take what is typed here.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  host.append(root);
  recipe.draw(model.get("recipe"));
  draw();

  const cleanup = () => {
    sizes.disconnect();
    unwatch();
    unlisten();
    leave();
    root.remove();
  };
  signal?.addEventListener("abort", cleanup);
  return cleanup;
}

export default { render };
