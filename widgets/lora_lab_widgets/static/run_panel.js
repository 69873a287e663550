// @ts-check
// The run's controls, progress, loss and errors. Draws `snapshot`; sends messages; never writes a
// trait back, so that Python stays the only writer. What memory it takes stands in the savings.

import {
  PanelView, button, el, formatCount, panel, progressBar, section, space,
} from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { LossChart, lossTable } from "./loss_chart.js";
import { formatLoss } from "./loss_plot.js";
import { joinClock, roomIn, watchSight, workbenchOf } from "./run_clock.js";
import { deviceList } from "./run_devices.js";
import { runFileBox } from "./run_file_box.js";
import { RunForm } from "./run_form.js";
import { shownRanks } from "./shown_ranks.js";
import { Term, term } from "./term.js";
import { unbroken } from "./unbroken.js";
import { whatNext } from "./what_next.js";

const OPEN_STATES = ["queued", "running", "pausing", "paused", "stopping"];
const PHASE_STATES = ["queued", "running"]; // what they are at says more than their name
const STATE_TEXTS = {
  idle: "ready", pausing: "pausing at the next step", stopping: "stopping at the next step",
};
const PAUSE = ["pause", "❚❚", "Pause"];
const PRIMARY = {
  running: PAUSE, pausing: PAUSE, paused: ["resume", "▶", "Resume"], stopping: PAUSE,
};

class RunPanelView extends PanelView {
  build() {
    const { model } = this;
    this.action = "start"; // of the primary button
    this.drawn = ""; // the snapshot on show, as JSON
    this.width = 0;
    this.form = new RunForm(model, (changes) => {
      // The other views of this page follow at once; Python's word comes with its answer.
      model.set("settings", { ...model.get("settings"), ...changes });
      this.clock.send(model, { type: "settings", settings: changes });
    });
    this.symbol = el("span", { "aria-hidden": "true" });
    this.verb = el("span");
    this.primary = button(undefined, () => this.onPrimary(), {
      class: "ll-button ll-primary ll-run-primary",
    });
    this.primary.append(this.symbol, this.verb);
    this.stop = button(undefined, () => this.command("stop"), { "aria-label": "Stop" });
    this.stop.append(el("span", { "aria-hidden": "true", text: "■" }), "Stop");
    this.keep = button("Keep…", () => this.command("keep"), {
      title: "save what was learned, download it, use it, go on from it",
    });
    this.evaluate = button("Evaluate what was learned", () => this.command("evaluate"), {
      title: "the run was stopped, so that the held-out examples were not scored again",
    });
    this.step = el("b", { class: "ll-run-step" });
    this.stats = spans("time", "rate", "padding", "loss");
    this.scores = spans("held", "metrics", "sureness");
    this.lossTerm = term(["training-loss", "nats"]);
    this.metricTerms = new Term(() => this.explained);
    this.phase = el("span", { class: "ll-run-phase" });
    this.busy = el("span", {
      class: "ll-run-busy", title: "it answers when the running cell ends", text: "· kernel busy",
      hidden: true,
    });
    this.id = el("span", { class: "ll-run-id" });
    this.progress = progressBar("training steps");
    this.spoken = el("span", { class: "ll-sr", role: "status", "aria-live": "polite" });

    this.devices = deviceList();
    this.noteCount = el("summary");
    this.noteList = el("ul");
    this.notes = el("details", { class: "ll-run-notes ll-dim" }, this.noteCount, this.noteList);
    this.chart = new LossChart();
    this.table = lossTable();
    this.next = whatNext(() => this.root, (name) => this.command(name));
    this.strip = errorStrip(() => this.command("take"));
    this.fileBox = runFileBox(() => this.useWhatIsShown("run_file"), "Take it to a cluster",
      "write what is set up here to a run file, for lora-lab train on another machine");
    this.card = this.buildCard();
    return section("ll-run", "training run",
      el("div", { class: "ll-run-form" }, this.form.node), this.card, this.spoken);
  }

  /** What explains the metrics on show: those of the task, and how sure they are. */
  get explained() {
    const own = this.model.get("plan").terms ?? [];
    return this.snapshot.metrics.length ? ["held-out", ...own, "kept", "interval"] : [];
  }

  buildCard() {
    const { stats, scores, strip, chart, table, fileBox } = this;
    const lamp = el("span", { class: "ll-run-lamp", "aria-hidden": "true" });
    return el("div", { class: "ll-card" },
      el("div", { class: "ll-run-row ll-run-top" },
        this.primary, this.stop, this.step, space(),
        el("span", { class: "ll-run-state ll-dim" }, lamp, this.phase, this.busy)),
      this.progress.node,
      el("div", { class: "ll-run-stats ll-dim" }, ...Object.values(stats),
        this.lossTerm),
      strip.node, chart.node, table.node,
      el("div", { class: "ll-run-scores ll-dim" }, scores.held,
        // A space at which no line breaks: the mark stays with the last score.
        el("span", {}, scores.metrics, "\u00a0", this.metricTerms.node), scores.sureness),
      el("div", { class: "ll-run-row ll-run-foot ll-dim" },
        this.id, this.next.node, this.keep, this.evaluate, space(), fileBox.button),
      this.devices.node, this.notes, fileBox.node);
  }

  follow() {
    const { model, form } = this;
    this.joinClock();
    this.watch(() => this.fileBox.draw(model.get("run_file")), "run_file");
    this.watch(() => this.drawNotes(model.get("notes")), "notes");
    this.watch(() => form.drawTasks(), "tasks");
    this.watch(() => form.drawMethods(), "methods");
    this.watch(() => {
      form.drawPlan();
      this.draw();
    }, "plan");
    this.watch(() => {
      form.draw();
      this.draw();
    }, "settings");
    this.listen({
      "change:snapshot": () => {
        this.drawNews();
        this.clock.heard(model.get("snapshot"));
      },
    });
    this.watchSize(() => this.resize(), this.card);
  }

  joinClock() {
    const view = {
      model: this.model,
      visible: false,
      gone: () => this.kernel.gone,
      width: () => roomIn(workbenchOf(this.root)),
      busy: (flag) => {
        this.busy.hidden = !flag;
      },
    };
    const [clock, leave] = joinClock(view);
    const unwatch = watchSight(this.root, (visible) => {
      view.visible = visible;
      clock.plan();
    });
    this.clock = clock;
    const unlisten = this.kernel.listen(() => {
      if (this.kernel.gone) this.busy.hidden = true; // it was: a dead one is not
      clock.plan();
    });
    this.closers.push(unwatch, leave, unlisten);
  }

  resize() {
    this.chart.resize(Math.floor(this.chart.node.parentElement.clientWidth - 24));
    const width = roomIn(workbenchOf(this.root));
    // The figures are as wide as Python is told.
    if (this.width && this.width !== width) this.clock.hurry();
    this.width = width;
  }

  // ---- commands

  onPrimary() {
    if (this.action === "start") this.useWhatIsShown("start");
    else this.command(this.action);
  }

  command(name) {
    this.clock.send(this.model, { type: "command", name, settings: {} });
  }

  /** A command that takes settings still being typed, and ranks that Python has not heard of. */
  useWhatIsShown(name) {
    const ranks = shownRanks(this.model.get("bench"));
    this.clock.send(this.model, { type: "command", name, settings: this.form.values(), ...ranks });
  }

  // ---- drawing

  /** The snapshot without its number, which changes with every answer. */
  get snapshot() {
    const { seq: _, ...snapshot } = this.model.get("snapshot");
    return snapshot;
  }

  drawNews() {
    if (JSON.stringify(this.snapshot) !== this.drawn) this.draw();
  }

  draw() {
    const { snapshot } = this;
    const { state, total_steps: total, losses, memory, problem } = snapshot;
    this.drawn = JSON.stringify(snapshot);
    this.root.dataset.llState = state;
    this.root.dataset.llStep = snapshot.step;
    this.drawButtons(snapshot);
    this.drawStats(snapshot);
    this.drawPhase(snapshot);
    this.next.draw(state === "done" && snapshot.step > 0);
    this.id.textContent = snapshot.run_id;
    this.strip.draw(problem);
    this.form.blame(problem?.field);
    const schedule = this.model.get("plan").schedule ?? [];
    const typed = Number(this.model.get("settings").max_steps) || 0;
    const steps = total || schedule.at(-1)?.[0] || typed;
    const fits = schedule.at(-1)?.[0] === steps;
    // Before the first run the unit is that of the task which is picked.
    const unit = (!snapshot.run_id && this.model.get("plan").loss_unit) || snapshot.loss_unit;
    const started = OPEN_STATES.includes(state);
    this.chart.draw(losses, steps, unit, snapshot.held_out, fits ? schedule : [], started);
    this.table.draw(losses, unit);

    this.devices.draw(memory?.devices ?? []);
  }

  drawButtons({ state, step, metrics }) {
    const { primary, stop } = this;
    const [action, symbol, verb] = PRIMARY[state] ?? ["start", "▶", "Start"];
    const isOpen = OPEN_STATES.includes(state);
    this.action = action;
    this.symbol.textContent = symbol;
    this.verb.textContent = verb;
    primary.setAttribute("aria-label", verb);
    primary.hidden = state === "queued"; // it starts by itself; Stop takes it out of the queue
    primary.disabled = state === "pausing" || state === "stopping";
    stop.disabled = !isOpen || state === "stopping";
    this.form.node.disabled = isOpen;
    const hasLearned = step > 0 && ["paused", "done", "failed"].includes(state);
    this.keep.hidden = state === "done"; // what is next has it
    this.keep.style.visibility = hasLearned ? "" : "hidden"; // its room is kept: nothing moves
    const isUnscored = metrics.some(({ before, after }) => before !== null && after === null);
    this.evaluate.hidden = !hasLearned || state !== "done" || !isUnscored;
  }

  drawStats(snapshot) {
    const { state, step, skipped, total_steps: total, eta, elapsed } = snapshot;
    const { rate, padding, loss, metrics, sureness } = snapshot;
    const { stats, scores } = this;
    const isOpen = OPEN_STATES.includes(state);
    const left = eta === null ? "" : `${formatTime(eta)} left`;
    const took = elapsed ? `took ${formatTime(elapsed)}` : "";
    const lost = skipped ? `, ${skipped} skipped` : "";
    this.step.textContent =
      total ? `step ${formatCount(step)} / ${formatCount(total)}${lost}` : "no run yet";
    this.step.title = skipped ? "gradients overflowed float16; the loss scale was halved" : "";
    stats.time.textContent = isOpen ? left : took;
    stats.rate.textContent = rate ? formatRate(rate) : "";
    stats.padding.textContent = padding === null ? "" : `${Math.round(100 * padding)} % padding`;
    stats.padding.title = "of the tokens computed so far: what fills batches up to their longest";
    stats.loss.textContent = loss === null ? "" : `this step's loss ${formatLoss(loss)}`;
    this.lossTerm.style.visibility = loss === null ? "hidden" : "";
    scores.held.textContent = formatHeldOut(snapshot);
    scores.metrics.replaceChildren(...unbroken(metricTexts(metrics)));
    scores.sureness.textContent = sureness;
    scores.sureness.title = sureness; // on narrow pages its end is cut
    this.metricTerms.draw();
    this.progress.draw(step, total || 1, this.step.textContent);
  }

  /** What the run has to say beside its numbers: rows left out, texts cut, nothing learned. */
  drawNotes(notes) {
    this.notes.hidden = !notes.length;
    this.noteCount.textContent = notes.length === 1 ? "1 note on this run" :
      `${notes.length} notes on this run`;
    this.noteList.replaceChildren(...notes.map((text) => el("li", { text })));
  }

  drawPhase({ state, phase, step, total_steps: total }) {
    const ended = state === "done" && step < total ? "stopped" : state;
    const text = STATE_TEXTS[state] ?? (PHASE_STATES.includes(state) && phase ? phase : ended);
    this.root.toggleAttribute("data-ll-stopped", ended === "stopped");
    this.phase.textContent = text;
    this.phase.title = text; // where there is little room its end is cut
    if (this.spoken.textContent !== `run: ${text}`) this.spoken.textContent = `run: ${text}`;
  }
}

/** {name: an empty span of that class}. */
function spans(...names) {
  return Object.fromEntries(names.map((name) => [name, el("span", { class: `ll-run-${name}` })]));
}

function formatTime(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  const pad = (n) => String(Math.floor(n)).padStart(2, "0");
  if (s < 3600) return `${Math.floor(s / 60)} min ${pad(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${pad((s % 3600) / 60)} min`;
}

function formatRate(rate) {
  return rate >= 1 ? `${rate.toFixed(1)} steps/s` : `${(1 / rate).toFixed(1)} s/step`;
}

/** "held-out loss 1.93 at step 40, best at 20". */
function formatHeldOut({ held_out: points, best_step: best }) {
  const last = points?.at(-1);
  if (!last) return "";
  const at = `held-out loss ${formatLoss(last[1])} at step ${last[0]}`;
  return best === null || best === last[0] ? at : `${at}, best at ${best}`;
}

/**
 * ["BLEU 12.1 → 38.2"] of [{label: "BLEU", before, after}]; "now" of a run at work. What only the
 * base has comes last, and is called its.
 */
function metricTexts(metrics) {
  const show = (value) => value?.toPrecision(3) ?? "–";
  const isMeasured = ({ after, now }) => after !== null || now !== undefined;
  const both = metrics.filter(isMeasured).map(({ label, before, after, now }) =>
    `${label} ${show(before)} → ${after === null ? `${show(now)} now` : show(after)}`);
  const base = metrics.filter((each) => !isMeasured(each))
    .map(({ label, before }) => `${label} ${show(before)}`);
  if (base.length) base[0] = `base model: ${base[0]}`;
  return [...both, ...base];
}

export default panel(RunPanelView);
