// The list of runs, the table of those compared, and one run in detail. Everything is set as text.

import { el, formatCount } from "./_shared.js";
import { formatLoss, lossChart } from "./loss_chart.js";
import { curveMark } from "./loss_curves.js";

const SURE_MS = 5000; // so long a second click on "Delete" counts

/**
 * A button whose first click asks; the second one, soon after, does it. `asked` is shared by the
 * buttons of a list, so that one drawn anew in the place of a button that asks goes on asking.
 */
function sureButton(text, question, label, act, asked) {
  const button = el("button", { class: "ll-button", type: "button", text, "aria-label": `${text} ${label}` });
  let timer = 0;
  const calm = () => {
    clearTimeout(timer);
    if (asked.button === button) asked.button = null; // else one drawn anew asks by now
    button.classList.remove("ll-sure");
    button.textContent = text;
    button.setAttribute("aria-label", `${text} ${label}`);
  };
  const ask = (until) => {
    Object.assign(asked, { button, label, until });
    button.classList.add("ll-sure");
    button.textContent = question;
    button.setAttribute("aria-label", `${question} ${label}`);
    timer = setTimeout(calm, until - performance.now());
  };
  button.addEventListener("click", () => {
    if (button.classList.contains("ll-sure")) {
      calm();
      act();
    } else {
      ask(performance.now() + SURE_MS);
    }
  });
  button.addEventListener("blur", calm);
  if (asked.button && asked.label === label) ask(asked.until);
  return button;
}

const RUN_HEADS = ["", "run", "state", "steps", "loss", "metrics", "started", ""];

/** {node, draw(form, shown)}; `send(type, id, value)` carries what people do. */
export function runList(send) {
  const body = el("div", { role: "rowgroup" });
  const head = el("div", { class: "ll-past-row ll-past-head ll-dim", role: "row" },
    ...RUN_HEADS.map((text) => el("span", { role: "columnheader", text })));
  const node = el("div", { class: "ll-past", role: "table", "aria-label": "runs on disk" }, el("div", { role: "rowgroup" }, head), body);
  const empty = el("p", { class: "ll-dim ll-past-empty", text: "No run is on disk here yet: press Start." });
  let drawn = "";
  const asked = {}; // {button, label, until}: which run's "Sure?" waits for its answer

  const row = (run, picked, shown) => {
    const tick = el("input", { type: "checkbox", class: "ll-tick", "aria-label": `compare ${run.id}` });
    tick.checked = picked >= 0;
    tick.addEventListener("change", () => send("pick", run.id, tick.checked));
    const cell = (name, ...children) => el("span", { class: `ll-past-${name}`, role: "cell" }, ...children);
    const open = el("button", { class: "ll-button", type: "button", text: shown ? "Hide" : "Show", "aria-label": `${shown ? "Hide" : "Show"} ${run.id}`, "aria-expanded": String(shown) });
    open.addEventListener("click", () => send("show", run.id, !shown));
    const resume = el("button", { class: "ll-button", type: "button", text: "Resume", "aria-label": `Resume ${run.id}`, disabled: !run.resumable });
    resume.addEventListener("click", () => send("resume", run.id));
    const remove = sureButton("Delete", "Sure?", run.id, () => send("delete", run.id), asked);
    remove.title = "the run's folder, its adapter included; click twice";
    remove.disabled = !run.deletable;
    const node_ = el("div", { class: "ll-past-row", role: "row", "data-run": run.id },
      cell("pick", tick, ...(picked >= 0 ? [el("b", { text: picked + 1 }), curveMark(picked)] : [])),
      cell("name", el("b", { text: run.label || run.id }), el("span", { class: "ll-dim", text: run.what }), el("span", { class: "ll-run-id ll-dim", text: run.id })),
      cell("state", el("i", { class: "ll-run-lamp", "aria-hidden": "true" }), el("span", { text: run.state })),
      cell("steps", run.steps ? `${formatCount(run.step)} / ${formatCount(run.steps)}` : formatCount(run.step)),
      cell("loss", formatLoss(run.loss)),
      cell("metrics", ...unbroken(run.metrics)),
      cell("when", run.when),
      cell("acts", open, ...(run.resumable ? [resume] : []), remove));
    node_.dataset.llState = run.state;
    return node_;
  };
  const draw = (form, shown) => {
    const news = JSON.stringify([form.rows, form.picked, shown]);
    if (news === drawn) return;
    drawn = news;
    const focused = node.getRootNode().activeElement?.getAttribute?.("aria-label");
    body.replaceChildren(...form.rows.map((run) => row(run, form.picked.indexOf(run.id), run.id === shown)));
    if (focused) body.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    head.hidden = !form.rows.length;
    empty.hidden = Boolean(form.rows.length);
  };
  return { node, empty, draw };
}

/** A line breaks between two metrics, not within one. */
function unbroken(metrics) {
  const whole = metrics ? metrics.split(" · ") : [];
  return whole.flatMap((text, i) => [el("span", { text: i + 1 < whole.length ? `${text} ·` : text }), " "]);
}

/** {node, draw(compared)}: a row for each of the picked runs. */
export function compareTable() {
  const table = el("table");
  const note = el("p", { class: "ll-dim" });
  const node = el("div", {}, el("div", { class: "ll-past-scroll", tabindex: 0, role: "region", "aria-label": "comparison of the picked runs" }, table), note);
  const draw = ({ columns = [], rows = [], note: text = "" }) => {
    table.replaceChildren(
      el("thead", {}, el("tr", {}, ...["", "run", ...columns].map((name) => el("th", { text: name, scope: "col" })))),
      el("tbody", {}, ...rows.map(({ label, cells }, i) => el("tr", {},
        el("td", { class: "ll-past-pick" }, el("b", { text: i + 1 }), curveMark(i)),
        el("th", { text: label, scope: "row" }),
        ...cells.map((cell) => el("td", { text: cell }))))));
    note.textContent = text;
  };
  return { node, draw };
}

/** {node, draw(details), resize(width)}: one run. */
export function runDetails(send) {
  const title = el("span", { class: "ll-title" });
  const report = el("button", { class: "ll-button", type: "button", text: "Write the report" });
  report.title = "report.html in the run's folder: what its files tell, with every figure";
  const facts = el("dl", { class: "ll-past-facts" });
  const config = el("pre", { class: "ll-past-config", tabindex: 0 });
  const samples = el("div", { class: "ll-past-samples" });
  const chart = lossChart();
  const node = el("div", { class: "ll-card ll-past-details" },
    el("div", { class: "ll-head" }, title, el("span", { class: "ll-space" }), report), chart.node, facts, config, samples);
  let id = "";
  report.addEventListener("click", () => send("report", id));
  const answer = (name, text) => el("div", {}, el("span", { class: "ll-dim", text: name }), el("div", { class: "ll-past-text", text: text || "–" }));
  const draw = (details) => {
    node.hidden = !details.id;
    if (!details.id) return;
    id = details.id;
    title.textContent = details.label;
    report.disabled = !details.reportable;
    facts.replaceChildren(...details.facts.flatMap(([name, text]) => [el("dt", { class: "ll-dim", text: name }), el("dd", { text })]));
    config.textContent = details.config;
    chart.draw(details.points, details.points.at(-1)?.[0] ?? 0);
    samples.replaceChildren(...details.samples.map(({ prompt, base, adapted }) =>
      el("article", {}, answer("prompt", prompt), answer("base model", base), answer("adapted", adapted))));
  };
  return { node, draw, resize: chart.resize };
}
