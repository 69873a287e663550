// @ts-check
// Many runs in a row. Draws `form`, `plan`, `progress`, `rows`; what people do goes out as
// messages.

import {
  PanelView, button, el, focusIn, formatCount, heading, opener, panel, progressBar, section, space,
} from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { runFileBox } from "./run_file_box.js";
import { shownRanks } from "./shown_ranks.js";
import { SweepForm } from "./sweep_form.js";
import { term } from "./term.js";

const CELL_HEADS = ["", "what is tried", "state", "held-out loss", "metric", "steps", "", ""];

class SweepPanelView extends PanelView {
  build() {
    const { model } = this;
    this.form = new SweepForm(() => this.sendValues(), model.get("layers"));
    this.closers.push(() => this.form.close());
    this.opener = opener("Open the sweep", () =>
      model.send({ type: "open", value: !model.get("form").open }));
    this.planned = el("span", { class: "ll-sweep-plan", role: "status" });
    this.start = button(undefined, () => {
      this.start.disabled = true; // until Python has answered
      this.useWhatIsShown("start");
    }, { class: "ll-button ll-primary", "aria-label": "Start the sweep" });
    this.start.append(el("span", { "aria-hidden": "true", text: "▶" }), "Start");
    this.stop = button(undefined, () => {
      this.stop.disabled = true;
      model.send({ type: "stop" });
    }, { "aria-label": "Stop the sweep" });
    this.stop.append(el("span", { "aria-hidden": "true", text: "■" }), "Stop");
    this.fileBox = runFileBox(() => this.useWhatIsShown("write"), "Write sweep.yaml",
      "the same cells as a file, for lora-lab sweep on another machine or a Ray cluster");
    this.spoken = el("span", { class: "ll-sr", role: "status", "aria-live": "polite" });
    this.strip = errorStrip();
    const buttons = el("div", { class: "ll-sweep-line" },
      this.start, this.stop, this.planned, space(), this.fileBox.button);
    this.body = el("div", { class: "ll-sweep-body" },
      this.form.node, buttons, this.fileBox.node, this.strip.node, this.buildCard());
    const root = section("ll-sweep", "sweep",
      heading("Sweep", term(["sweep", "cell"]),
        "many runs in a row: ranks, rates, seeds, methods", space(),
        this.opener.node),
      this.body, this.spoken);
    root.addEventListener("keydown", (event) => {
      const isField = event.target instanceof HTMLInputElement;
      if (event.key === "Enter" && isField) this.sendValues();
    });
    return root;
  }

  follow() {
    const { model } = this;
    this.watch(() => this.drawForm(), "form");
    this.watch(() => this.drawPlan(), "plan");
    this.watch(() => this.drawProgress(), "progress");
    this.watch(() => this.table.draw(model.get("rows")), "rows");
    this.watch(() => this.drawFound(), "found");
    this.watch(() => this.fileBox.draw(model.get("run_file")), "run_file");
    this.watch(() => this.drawProblem(), "problem");
    this.listen({
      "msg:custom": () => {
        this.opener.answered();
        this.drawButtons();
      },
    });
  }

  /** How the sweep goes on. */
  buildCard() {
    this.line = el("b");
    this.left = el("span", { class: "ll-dim" });
    this.state = el("span");
    this.progress = progressBar("cells of the sweep");
    this.status = el("span");
    this.folder = el("span", { class: "ll-sweep-folder" });
    this.table = cellTable((cell) => this.model.send({ type: "keep", cell }));
    this.more = el("p", { class: "ll-dim ll-sweep-hidden" });
    this.found = el("div", { class: "ll-sweep-found" });
    const lamp = el("span", { class: "ll-run-lamp ll-sweep-lamp", "aria-hidden": "true" });
    const state = el("span", { class: "ll-sweep-state ll-dim" }, lamp, this.state);
    this.card = el("div", { class: "ll-card ll-sweep-going" },
      el("div", { class: "ll-sweep-line" }, this.line, space(), this.left, state),
      this.progress.node,
      el("div", { class: "ll-sweep-line ll-sweep-told ll-dim" }, this.status, space(), this.folder),
      this.found, this.table.node, this.more);
    return this.card;
  }

  // ---- what people do

  sendValues() {
    this.model.send({ type: "set", values: this.form.values() });
  }

  useWhatIsShown(type) {
    const ranks = shownRanks(this.model.get("bench"));
    this.model.send({ type, values: this.form.values(), ...ranks });
  }

  // ---- drawing

  drawButtons() {
    const { bad, cells } = this.model.get("plan");
    const { state } = this.model.get("progress");
    const isOpen = state === "running" || state === "stopping";
    this.start.disabled = isOpen || bad || !cells;
    this.stop.disabled = state !== "running";
    this.form.node.disabled = isOpen;
    this.fileBox.button.disabled = bad || !cells;
  }

  drawForm() {
    const { open, values } = this.model.get("form");
    this.opener.draw(open);
    this.body.hidden = !open;
    this.form.draw(values);
    this.fileBox.button.textContent =
      values.compare === "yes" ? "Write compare.yaml" : "Write sweep.yaml";
  }

  drawPlan() {
    const { line, bad, field } = this.model.get("plan");
    this.planned.textContent = line;
    this.planned.classList.toggle("ll-sweep-bad", bad);
    this.form.blame(field);
    this.drawButtons();
  }

  drawProgress() {
    const progress = this.model.get("progress");
    const { state, ended, total, hidden } = progress;
    this.card.hidden = !state;
    this.drawButtons();
    if (!state) return;
    this.root.dataset.llState = state;
    this.line.textContent = progress.line;
    this.left.textContent = progress.left;
    this.state.textContent = state === "stopping" ? "stopping at the next step" : state;
    this.progress.draw(Math.round(100 * progress.share), 100, `${ended} of ${total} cells`);
    this.status.textContent = progress.problem || progress.told;
    this.status.classList.toggle("ll-sweep-bad", Boolean(progress.problem));
    this.folder.textContent = progress.folder;
    this.more.hidden = !hidden;
    this.more.textContent =
      `and ${formatCount(hidden)} more cells, which are in the sweep's results()`;
    const spoken = `sweep: ${state}, ${ended} of ${total} cells`; // steps are not read out
    if (this.spoken.textContent !== spoken) this.spoken.textContent = spoken;
  }

  /** What a comparison came to, once it is over. */
  drawFound() {
    const { header, rows, words, notes } = this.model.get("found");
    this.found.hidden = !header;
    if (!header) return;
    const line = (cells, tag) =>
      el("tr", {}, ...cells.map((text) => el(tag, { text })));
    this.found.replaceChildren(
      el("table", { "aria-label": "methods at their own best rates" },
        el("thead", {}, line(header, "th")),
        el("tbody", {}, ...rows.map((cells) => line(cells, "td")))),
      el("p", { text: words }),
      el("p", { class: "ll-dim", text: notes }));
  }

  drawProblem() {
    this.strip.draw(this.model.get("problem"));
    this.drawButtons();
  }
}

/** The cells as they stand: {node, draw(rows)}; `keep(cell)` when one's adapter is to be kept. */
function cellTable(keep) {
  const body = el("div", { role: "rowgroup" });
  const head = el("div", { class: "ll-sweep-row ll-sweep-head ll-dim", role: "row" },
    ...CELL_HEADS.map((text) => el("span", { role: "columnheader", text })));
  const node = el("div", {
    class: "ll-sweep-cells", role: "table", "aria-label": "cells of the sweep", tabindex: 0,
  }, el("div", { role: "rowgroup" }, head), body);
  const draw = (rows) => {
    node.hidden = !rows.length;
    const focused = focusIn(node)?.getAttribute("aria-label");
    body.replaceChildren(...rows.map((row) => cellRow(row, keep)));
    const again = [...body.querySelectorAll("button")]
      .find((each) => focused && each.getAttribute("aria-label") === focused);
    again?.focus({ preventScroll: true });
  };
  return { node, draw };
}

function cellRow({ cell, best, what, state, loss, metric, step, steps, note, run }, keep) {
  const part = (name, ...children) =>
    el("span", { class: `ll-sweep-${name}`, role: "cell" }, ...children);
  const show = (value) =>
    (value === null || value === undefined ? "–" : value.toFixed(value < 10 ? 3 : 1));
  const lamp = el("i", { class: "ll-run-lamp", "aria-hidden": "true" });
  const row = el("div", { class: "ll-sweep-row", role: "row" },
    part("rank", ...(best ? [el("b", { text: "best" })] : [])),
    part("what", what),
    part("state", lamp, el("span", { text: state })),
    part("loss", show(loss)),
    part("metric", metric || "–"),
    part("steps", step ? `${formatCount(step)} / ${formatCount(steps)}` : "–"),
    part("note", note),
    part("keep", ...(run ? [button("Keep", () => keep(cell), {
      "aria-label": `Keep ${what}`, title: "save it, download it, use it, go on from it",
    })] : [])));
  row.dataset.llState = state;
  if (best) row.dataset.llBest = "";
  return row;
}

export default panel(SweepPanelView);
