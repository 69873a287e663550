// @ts-check
// Draws the plan's cost beside full fine-tuning's, at every stroke of the rank grid.

import { PanelView, el, formatBytes, formatCount, heading, panel } from "./_shared.js";
import { barRow, drawBar, formatPart, memoryTable } from "./savings_bars.js";
import {
  PARTS, evaluatePrice, formatChange, formatParameters, formatRatio, formatShare, headOf, totalOf,
} from "./savings_price.js";
import { term } from "./term.js";

const CLOSE = 0.05; // a measured peak this near to its forecast gets a tick
const EMPTY = "–";
const APPROXIMATE = "≈ formula";
const EXPLAINED = {
  weights: "the model's, and what the method adds, in float32",
  gradients: "of all that is trained, in float32 as AdamW is given them",
  optimizer: "AdamW's two moments of every trained number, and float32 masters of 16-bit ones",
  activations: "what the peak needs above the other three; gradients only come as activations go",
};
const SOURCES = {
  formula: "in closed form",
  [APPROXIMATE]: "in closed form; activations are an estimate for this model and method",
  "dry run": "counted in a training step on fake tensors",
};

function bigNumber(name, mark) {
  const value = el("b", { class: "ll-savings-number", text: EMPTY });
  const caption = el("span", { class: "ll-savings-caption ll-dim ll-label", text: name });
  const node = el("div", {}, value, el("span", { class: "ll-savings-term" }, caption, mark));
  return { node, value, caption };
}

function breakdown(name, memory, source) {
  const lines = PARTS.map((part) => `${part}: ${formatPart(memory, part)} – ${EXPLAINED[part]}`);
  const total = `${formatBytes(totalOf(memory))} at the peak of a training step`;
  return [`${name}: ${total}, ${SOURCES[source]}`, ...lines].join("\n");
}

/** Whether two rank maps are one plan; a rank of 0 is no rank. */
function samePlan(a, b) {
  const painted = (ranks) => Object.entries(ranks).filter(([, r]) => r > 0);
  const first = painted(a);
  return first.length === painted(b).length && first.every(([name, r]) => b[name] === r);
}

class SavingsView extends PanelView {
  build() {
    this.ranks = {};
    this.forecast = null; // {full, plan}: total bytes, plan null while nothing is painted
    this.trainable = bigNumber("trainable", term("trainable"));
    this.checkpoint = bigNumber("checkpoint", term("checkpoint"));
    this.peak = bigNumber("peak memory", term("savings"));
    this.full = barRow("full fine-tuning", PARTS, EMPTY);
    this.plan = barRow("this plan", PARTS, EMPTY);
    this.measured = barRow("measured peak", [...PARTS, "whole"], EMPTY);
    this.measured.node.removeAttribute("aria-hidden"); // not in the table: every tick changes it
    // On the plan's bar: where its own batches are expected to end.
    this.mark = el("i", { class: "ll-savings-mark", title: "expected", hidden: true });
    this.plan.track.append(this.mark);
    this.settings = el("span");
    this.reading = el("span");
    this.note = el("div", { class: "ll-savings-line" });
    this.spoken = el("span", { class: "ll-sr", role: "status" }); // not each stroke's forecast
    this.table = el("table");
    const numbers = [this.trainable, this.checkpoint, this.peak].map(({ node }) => node);
    const legend = PARTS.map((part) =>
      el("span", { title: EXPLAINED[part] }, el("i", { class: `ll-savings-${part}` }), part));
    return el("section", { class: "ll-panel ll-savings", "aria-label": "Savings" },
      el("div", { class: "ll-savings-body" },
        heading("Savings", term(["memory-kinds", "memory-parts"]), this.settings),
        el("div", { class: "ll-savings-big" }, ...numbers),
        el("div", { class: "ll-savings-bars" },
          this.full.node, this.plan.node, this.measured.node,
          el("div", { class: "ll-savings-key" }, ...legend, this.reading)),
        this.note),
      this.spoken,
      el("div", { class: "ll-sr" }, this.table), // a table itself would not shrink to a pixel
    );
  }

  follow() {
    const { model } = this;
    const onPaint = (/** @type {any} */ { detail }) => {
      if (detail.bench === model.get("bench")) this.adopt(detail.ranks);
    };
    document.addEventListener("lora-lab:ranks", onPaint);
    this.closers.push(() => document.removeEventListener("lora-lab:ranks", onPaint));
    this.watch(() => this.adopt(model.get("ranks")), "ranks");
    this.watch(() => this.drawPlan(), "price", "totals", "settings_text", "dry_run", "lengths");
    this.watch(() => this.drawMeasured(),
      "measured", "run_ranks", "run_key", "difference", "note");
  }

  adopt(ranks) {
    this.ranks = ranks;
    this.drawPlan();
  }

  /** Another method's plan, priced by Python; LoRA's ranks are priced here, at every stroke. */
  get priced() {
    const totals = this.model.get("totals");
    return "key" in totals ? totals : null;
  }

  get isPlanned() {
    const { priced } = this;
    return priced ? priced.key !== "" : Object.values(this.ranks).some((r) => r > 0);
  }

  /** Whether what was measured or counted of these ranks or of this key is of the plan on show. */
  isOnShow(ranks, key) {
    const { priced } = this;
    if (priced) return priced.key !== "" && priced.key === key;
    return !key && samePlan(this.ranks, ranks);
  }

  // ---- the plan

  drawPlan() {
    const { model, priced } = this;
    const price = model.get("price");
    const ready = Boolean(price.sites);
    const cost = ready ? (priced ?? evaluatePrice(price, this.ranks)) : null;
    const any = Boolean(cost?.trainable);
    const dry = model.get("dry_run");
    const planIsDry = any && dry.plan && this.isOnShow(dry.ranks, dry.key);
    const full = ready ? dry.full ?? price.full : null;
    const plan = any ? (planIsDry ? dry.plan : cost.memory) : null;
    const formula = ready && price.approximate ? APPROXIMATE : "formula";
    const ofPlan = priced?.approximate ? APPROXIMATE : formula;
    const sources = { full: dry.full ? "dry run" : formula, plan: planIsDry ? "dry run" : ofPlan };
    this.forecast = ready ? this.forecastOf(full, any ? plan : null) : null;
    this.settings.textContent =
      model.get("settings_text") || (ready ? `against full fine-tuning, ${price.settings}` : "");
    this.root.dataset.llTrainable = any ? cost.trainable : 0;
    this.root.dataset.llCheckpoint = any ? cost.checkpoint : 0;
    if (any) this.drawCost(cost, price, Object.values(sources).includes(APPROXIMATE));
    else this.drawNoCost(ready);
    this.drawRow(this.full, "full fine-tuning", full, sources.full);
    this.drawRow(this.plan, "this plan", plan, sources.plan, priced?.notes);
    this.table.replaceChildren(...memoryTable([
      [`full fine-tuning (${sources.full})`, full], [`this plan (${sources.plan})`, plan],
    ]));
    this.drawMeasured();
  }

  /** Totals: of both at the longest batch that there can be, of the plan as expected too. */
  forecastOf(full, plan) {
    const share = this.model.get("lengths").share ?? 1;
    const most = plan && totalOf(plan);
    return { full: totalOf(full), plan: most, expected: most && Math.round(most * share) };
  }

  /** "at most 1.24 GiB (longest batch: …); expected 1.02 GiB (…)". */
  forecastText() {
    const { most, drawn } = this.model.get("lengths");
    const { plan, expected } = this.forecast ?? {};
    if (!plan || !most) return "";
    const text = `at most ${formatBytes(plan)} (longest batch: ${most})`;
    return drawn ? `${text}; expected ${formatBytes(expected)} (${drawn})` : text;
  }

  drawCost(cost, price, approximate) {
    const { trainable, checkpoint, peak, forecast } = this;
    const all = formatParameters(price.parameters);
    trainable.value.textContent = formatParameters(cost.trainable);
    trainable.caption.textContent =
      `trainable of ${all.replace(" ", "\u00a0")} ` + // its unit stays with a number
      `(${formatShare(cost.trainable, price.parameters).replace(" ", "\u00a0")})`;
    trainable.node.title =
      `${formatCount(cost.trainable)} of ${formatCount(price.parameters)} ${countedText(price)}`;
    checkpoint.value.textContent = formatBytes(cost.checkpoint);
    checkpoint.caption.textContent = cost.checkpoint < price.weights
      ? `checkpoint, ${formatRatio(price.weights, cost.checkpoint)} smaller`
      : "checkpoint, the whole model";
    checkpoint.node.title =
      `${formatCount(cost.checkpoint)} bytes, the whole model ${formatBytes(price.weights)}`;
    const change = formatChange(forecast.plan, forecast.full);
    peak.value.textContent = approximate ? `≈ ${change}` : change;
  }

  drawNoCost(ready) {
    const { trainable, checkpoint, peak } = this;
    const why = this.priced ? "these settings make no plan" : "paint a rank to see a plan";
    trainable.value.textContent = ready ? "0" : EMPTY;
    trainable.caption.textContent = ready ? why : "no model yet";
    checkpoint.value.textContent = EMPTY;
    checkpoint.caption.textContent = "checkpoint";
    peak.value.textContent = EMPTY;
    trainable.node.title = "";
    checkpoint.node.title = "";
  }

  drawRow(row, name, memory, source, notes = []) {
    row.memory = memory;
    row.source.textContent = memory ? source : "";
    row.node.classList.toggle("ll-savings-approximate", source === APPROXIMATE);
    row.value.textContent = memory ? formatBytes(totalOf(memory)) : EMPTY;
    row.node.title = memory ? [breakdown(name, memory, source), ...notes].join("\n") : "";
  }

  // ---- what was measured

  drawMeasured() {
    const { model, measured, forecast } = this;
    const memory = model.get("measured");
    const known = memory.peak > 0;
    this.drawBars(known ? memory : null);
    measured.node.classList.toggle("ll-savings-waiting", !known);
    measured.value.textContent = known ? formatBytes(memory.peak) : EMPTY;
    // The plan on show may have been chosen after the run that was measured.
    const isOfThisPlan = this.isOnShow(model.get("run_ranks"), model.get("run_key"));
    const comparable = Boolean(known && memory.settled && forecast?.plan && isOfThisPlan);
    const change = comparable ? formatChange(memory.peak, forecast.expected) : "";
    const close = comparable && Math.abs(memory.peak / forecast.expected - 1) <= CLOSE;
    measured.source.textContent = close ? `✓ ${change}` : change;
    measured.source.classList.toggle("ll-savings-ok", close);
    measured.source.classList.toggle("ll-savings-off", comparable && !close);
    measured.node.title = known ? measuredTitle(memory, change) : "";
    this.reading.textContent = known
      ? `${memory.kind}, now ${formatBytes(memory.current)}`
      : "measured while a run trains";
    const differs = comparable ? model.get("difference") : "";
    const isOfAnother = known && !isOfThisPlan && this.isPlanned;
    const note = isOfAnother ? "measured of another plan or other settings" : model.get("note");
    if (this.spoken.textContent !== differs) this.spoken.textContent = differs;
    this.note.textContent = differs || note || this.forecastText();
    this.note.title = this.note.textContent;
    this.note.classList.toggle("ll-savings-off", Boolean(differs));
  }

  /** All three bars, on one scale. */
  drawBars(memory) {
    const { full, plan, measured, forecast } = this;
    const scale = Math.max(forecast?.full ?? 0, forecast?.plan ?? 0, memory?.peak ?? 0);
    drawBar(full, full.memory, scale);
    drawBar(plan, plan.memory, scale);
    // A meter that cannot tell the parts apart gives one bar.
    drawBar(measured, memory && !memory.weights ? { whole: memory.peak } : memory, scale);
    const { plan: most, expected } = forecast ?? {};
    this.mark.hidden = !most || expected === most;
    this.mark.style.left = `${scale ? (100 * expected) / scale : 0}%`;
  }
}

/** What is counted: "parameters; 384 of them are the head's, …". */
function countedText(price) {
  const count = headOf(price);
  if (!count) return "parameters";
  return `parameters; ${formatCount(count)} are the head's, which is trained whole`;
}

function measuredTitle(memory, change) {
  const against = change && `, ${change} against the forecast`;
  const parts = memory.weights ? PARTS.map((part) => `${part}: ${formatPart(memory, part)}`) : [];
  const peak = `${formatCount(memory.peak)} bytes at the peak`;
  return [`${peak}${against}; ${formatCount(memory.current)} now`, ...parts].join("\n");
}

export default panel(SavingsView);
