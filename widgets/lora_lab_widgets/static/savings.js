// Draws the plan's cost beside full fine-tuning's, at every stroke of the rank grid.

import { el, formatBytes, formatCount, listen } from "./_shared.js";
import {
  evaluatePrice, formatChange, formatParameters, formatRatio, formatShare, PARTS, totalOf,
} from "./savings_price.js";

const CLOSE = 0.05; // a measured peak this near to its forecast gets a tick
const EMPTY = "–";
const EXPLAINED = {
  weights: "the model's, and what the method adds, in float32",
  gradients: "of all that is trained",
  optimizer: "AdamW's two moments of every trained number",
  activations: "what the peak needs above the other three; gradients only come as activations go",
};

function bigNumber(name) {
  const value = el("b", { class: "ll-savings-number", text: EMPTY });
  const caption = el("span", { class: "ll-savings-caption ll-dim ll-label", text: name });
  return { node: el("div", {}, value, caption), value, caption };
}

function barRow(label, pieces) {
  const segments = Object.fromEntries(
    pieces.map((piece) => [piece, el("i", { class: `ll-savings-seg ll-savings-${piece}`, hidden: true })]),
  );
  const track = el("div", { class: "ll-savings-track" }, ...Object.values(segments));
  const value = el("span", { class: "ll-num", text: EMPTY });
  const source = el("span", { class: "ll-savings-source", text: "" });
  const node = el(
    "div",
    { class: "ll-savings-row", "aria-hidden": "true" },
    el("span", { text: label }),
    track,
    value,
    source,
  );
  return { node, segments, value, source };
}

function drawBar(row, sizes, scale) {
  for (const [piece, segment] of Object.entries(row.segments)) {
    const bytes = sizes?.[piece] ?? 0;
    segment.hidden = !(bytes > 0);
    segment.style.width = `${scale ? (100 * bytes) / scale : 0}%`;
  }
}

const SOURCES = {
  formula: "in closed form",
  "≈ formula": "in closed form; activations are an estimate for this model and method",
  "dry run": "counted in a training step on fake tensors",
};

function breakdown(name, memory, source) {
  const lines = PARTS.map((part) => `${part}: ${formatBytes(memory[part])} – ${EXPLAINED[part]}`);
  const total = `${name}: ${formatBytes(totalOf(memory))} at the peak of a training step, ${SOURCES[source]}`;
  return [total, ...lines].join("\n");
}

/** Whether two rank maps are one plan; a rank of 0 is no rank. */
function samePlan(a, b) {
  const painted = (ranks) => Object.entries(ranks).filter(([, r]) => r > 0);
  const first = painted(a);
  return first.length === painted(b).length && first.every(([name, r]) => b[name] === r);
}

/** The same numbers for screen readers, exact bytes at each cell. */
function twin(rows) {
  const cells = (memory) =>
    [...PARTS, "total"].map((part) => {
      const bytes = memory ? (part === "total" ? totalOf(memory) : memory[part]) : null;
      return el("td", { "data-ll-bytes": bytes, text: bytes === null ? "none" : formatBytes(bytes) });
    });
  const head = ["", ...PARTS, "total"].map((part) => el("th", { scope: "col", text: part }));
  return [
    el("caption", { text: "Peak memory of a training step" }),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...rows.map(([name, memory]) =>
      el("tr", {}, el("th", { scope: "row", text: name }), ...cells(memory)))),
  ];
}

function render({ model, el: host, signal }) {
  const [trainable, checkpoint, peak] = ["trainable", "checkpoint", "peak memory"].map(bigNumber);
  const full = barRow("full fine-tuning", PARTS);
  const plan = barRow("this plan", PARTS);
  const measured = barRow("measured peak", [...PARTS, "whole"]);
  measured.node.removeAttribute("aria-hidden"); // not in the table: it changes with every tick
  const settings = el("span", {});
  const reading = el("div", { class: "ll-savings-line" });
  const note = el("div", { class: "ll-savings-line", role: "status" });
  const legend = el(
    "div",
    { class: "ll-savings-key" },
    ...PARTS.map((part) =>
      el("span", { title: EXPLAINED[part] }, el("i", { class: `ll-savings-${part}` }), part)),
  );
  const table = el("table", {});
  const root = el(
    "section",
    { class: "ll-panel ll-savings", "aria-label": "Savings" },
    el("div", { class: "ll-head" }, el("span", { class: "ll-title", text: "Savings" }), settings),
    el("div", { class: "ll-savings-big" }, trainable.node, checkpoint.node, peak.node),
    full.node,
    plan.node,
    measured.node,
    legend,
    reading,
    note,
    el("div", { class: "ll-sr" }, table), // a table itself would not shrink to a pixel
  );

  let ranks = model.get("ranks");
  /** Another method's plan comes priced by Python; LoRA's ranks are priced here, at every stroke. */
  const other = () => ("key" in model.get("totals") ? model.get("totals") : null);
  const planned = () => (other() ? other().key !== "" : Object.values(ranks).some((r) => r > 0));
  const isOnShow = (itsRanks, itsKey) =>
    other() ? other().key !== "" && other().key === itsKey : !itsKey && samePlan(ranks, itsRanks);
  let forecast = null; // {full, plan}: total bytes, plan null while nothing is painted

  const drawMeasured = () => {
    const took = model.get("measured");
    const known = took.peak > 0;
    const scale = Math.max(forecast?.full ?? 0, forecast?.plan ?? 0, known ? took.peak : 0);
    for (const [row, memory] of [[full, full.memory], [plan, plan.memory]]) drawBar(row, memory, scale);
    // A meter that cannot tell the parts apart gives one bar.
    drawBar(measured, known && !took.weights ? { whole: took.peak } : known ? took : null, scale);
    measured.node.classList.toggle("ll-savings-waiting", !known);
    measured.value.textContent = known ? formatBytes(took.peak) : EMPTY;
    // The plan on show may have been chosen after the run that was measured.
    const ofThisPlan = isOnShow(model.get("run_ranks"), model.get("run_key"));
    const comparable = known && took.settled && forecast?.plan && ofThisPlan;
    const change = comparable ? formatChange(took.peak, forecast.plan) : "";
    const close = comparable && Math.abs(took.peak / forecast.plan - 1) <= CLOSE;
    measured.source.textContent = close ? `✓ ${change}` : change;
    measured.source.classList.toggle("ll-savings-ok", Boolean(close));
    measured.source.classList.toggle("ll-savings-off", Boolean(comparable && !close));
    const parts = known && took.weights ? PARTS.map((part) => `${part}: ${formatBytes(took[part])}`) : [];
    measured.node.title = known
      ? [
          `${formatCount(took.peak)} bytes at the peak${change && `, ${change} against the forecast`}; ${formatCount(took.current)} now`,
          ...parts,
        ].join("\n")
      : "";
    reading.textContent = known ? `${took.kind}, now ${formatBytes(took.current)}` : "measured while a run trains";
    const differs = comparable ? model.get("difference") : "";
    note.textContent = differs || (known && !ofThisPlan && planned() ? "measured of another plan or other settings" : model.get("note"));
    note.title = note.textContent;
    note.classList.toggle("ll-savings-off", Boolean(differs));
  };

  const drawPlan = () => {
    const price = model.get("price");
    const ready = Boolean(price.sites);
    const own = other();
    const cost = ready ? (own ?? evaluatePrice(price, ranks)) : null;
    const any = Boolean(cost?.trainable);
    const dry = model.get("dry_run");
    const formula = ready && price.approximate ? "≈ formula" : "formula";
    const planIsDry = any && dry.plan && isOnShow(dry.ranks, dry.key);
    const itsFormula = own?.approximate ? "≈ formula" : formula;
    const sources = { full: dry.full ? "dry run" : formula, plan: planIsDry ? "dry run" : itsFormula };
    const about = sources.full === "≈ formula" || sources.plan === "≈ formula" ? "≈ " : "";
    settings.textContent =
      model.get("settings_text") || (ready ? `against full fine-tuning, ${price.settings}` : "");
    root.dataset.llTrainable = any ? cost.trainable : 0;
    root.dataset.llCheckpoint = any ? cost.checkpoint : 0;

    full.memory = ready ? dry.full ?? price.full : null;
    plan.memory = any ? (planIsDry ? dry.plan : cost.memory) : null;
    forecast = ready ? { full: totalOf(full.memory), plan: any ? totalOf(plan.memory) : null } : null;
    trainable.value.textContent = any ? formatParameters(cost.trainable) : ready ? "0" : EMPTY;
    trainable.caption.textContent = any
      ? `trainable of ${formatParameters(price.parameters)} (${formatShare(cost.trainable, price.parameters)})`
      : !ready ? "no model yet" : own ? "these settings make no plan" : "paint a rank to see a plan";
    checkpoint.value.textContent = any ? formatBytes(cost.checkpoint) : EMPTY;
    const smaller = cost?.checkpoint < price.weights ? `${formatRatio(price.weights, cost.checkpoint)} smaller` : "the whole model";
    checkpoint.caption.textContent = any ? `checkpoint, ${smaller}` : "checkpoint";
    peak.value.textContent = any ? about + formatChange(forecast.plan, forecast.full) : EMPTY;
    for (const [row, name, source] of [[full, "full fine-tuning", sources.full], [plan, "this plan", sources.plan]]) {
      row.source.textContent = row.memory ? source : "";
      row.node.classList.toggle("ll-savings-approximate", source === "≈ formula");
      row.value.textContent = row.memory ? formatBytes(totalOf(row.memory)) : EMPTY;
      const notes = row === plan && own?.notes ? own.notes : [];
      row.node.title = row.memory ? [breakdown(name, row.memory, source), ...notes].join("\n") : "";
    }
    trainable.node.title = any ? `${formatCount(cost.trainable)} of ${formatCount(price.parameters)} parameters` : "";
    checkpoint.node.title = any
      ? `${formatCount(cost.checkpoint)} bytes, the whole model ${formatBytes(price.weights)}`
      : "";
    table.replaceChildren(
      ...twin([[`full fine-tuning (${sources.full})`, full.memory], [`this plan (${sources.plan})`, plan.memory]]),
    );
    drawMeasured();
  };

  const adopt = () => {
    ranks = model.get("ranks");
    drawPlan();
  };
  const painting = ({ detail }) => {
    if (detail.bench !== model.get("bench")) return;
    ranks = detail.ranks;
    drawPlan();
  };
  const unlisten = listen(model, {
    "change:price": drawPlan,
    "change:ranks": adopt,
    "change:totals": drawPlan,
    "change:settings_text": drawPlan,
    "change:dry_run": drawPlan,
    "change:measured": drawMeasured,
    "change:run_ranks": drawMeasured,
    "change:run_key": drawMeasured,
    "change:difference": drawMeasured,
    "change:note": drawMeasured,
  });
  document.addEventListener("lora-lab:ranks", painting);
  const close = () => {
    unlisten();
    document.removeEventListener("lora-lab:ranks", painting);
  };
  signal?.addEventListener("abort", close);
  drawPlan();
  host.append(root);
  return close;
}

export default { render };
