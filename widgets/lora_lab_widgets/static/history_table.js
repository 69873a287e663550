// @ts-check
// The list of runs, the table of those compared, and one run in detail. Everything is set as text.

import { button, el, focusIn, formatCount, space } from "./_shared.js";
import { LossChart } from "./loss_chart.js";
import { curveMark } from "./loss_curves.js";
import { formatLoss } from "./loss_plot.js";
import { term } from "./term.js";
import { unbroken } from "./unbroken.js";

const SURE_MS = 5000; // so long a second click on "Delete" counts
const RUN_HEADS = ["run", "state", "steps", "loss", "metrics", "started"];

/**
 * A button whose first click asks; the second one, soon after, does it. `asked` is shared by the
 * buttons of a list, so that one drawn anew in the place of a button that asks goes on asking.
 */
function sureButton(text, question, label, act, asked) {
  let timer = 0;
  const say = (words) => {
    node.textContent = words;
    node.setAttribute("aria-label", `${words} ${label}`);
  };
  const calm = () => {
    clearTimeout(timer);
    if (asked.button === node) asked.button = null; // else one drawn anew asks by now
    node.classList.remove("ll-sure");
    say(text);
  };
  const ask = (until) => {
    Object.assign(asked, { button: node, label, until });
    node.classList.add("ll-sure");
    say(question);
    timer = setTimeout(calm, until - performance.now());
  };
  const node = button("", () => {
    if (node.classList.contains("ll-sure")) {
      calm();
      act();
    } else {
      ask(performance.now() + SURE_MS);
    }
  });
  say(text);
  node.addEventListener("blur", calm);
  if (asked.button && asked.label === label) ask(asked.until);
  return node;
}

/** {node, empty, draw(form, open)}; `send(type, id, value)` carries what people do. */
export function runList(send) {
  const body = el("div", { role: "rowgroup" });
  const head = el("div", { class: "ll-past-row ll-past-head ll-dim", role: "row" },
    unseen("compare"),
    ...RUN_HEADS.map((text) => el("span", { role: "columnheader" }, text, " ", marked(text))),
    unseen("buttons"));
  const node = el("div", { class: "ll-past", role: "table", "aria-label": "runs on disk" },
    el("div", { role: "rowgroup" }, head), body);
  const empty = el("p", {
    class: "ll-dim ll-past-empty", text: "No run is on disk here yet: press Start.",
  });
  let drawn = "";
  const asked = {}; // {button, label, until}: which run's "Sure?" waits for its answer

  const draw = (form, open) => {
    const news = JSON.stringify([form.rows, form.picked, open]);
    if (news === drawn) return;
    drawn = news;
    const focused = focusIn(node)?.getAttribute("aria-label");
    body.replaceChildren(...form.rows.map((run) =>
      runRow(run, form.picked.indexOf(run.id), run.id === open, send, asked)));
    const again = [...body.querySelectorAll("button, input")]
      .find((each) => focused && each.getAttribute("aria-label") === focused);
    /** @type {HTMLElement} */ (again)?.focus({ preventScroll: true });
    head.hidden = !form.rows.length;
    empty.hidden = Boolean(form.rows.length);
  };
  return { node, empty, draw };
}

/** The "?" of a column's head, or nothing. */
function marked(text) {
  if (text === "loss") return term(["training-loss", "nats"]);
  return text === "metrics" ? term(["held-out", "bleu", "accuracy", "kept"]) : "";
}

/** A column's head for screen readers alone. */
function unseen(text) {
  return el("span", { role: "columnheader" }, el("span", { class: "ll-sr", text }));
}

/** One run: `picked` is its place among those compared, or −1; `open` whether its details show. */
function runRow(run, picked, open, send, asked) {
  const cell = (name, ...children) =>
    el("span", { class: `ll-past-${name}`, role: "cell" }, ...children);
  const number = picked >= 0 ? [el("b", { text: picked + 1 }), curveMark(picked)] : [];
  const lamp = el("i", { class: "ll-run-lamp", "aria-hidden": "true" });
  const step = formatCount(run.step);
  const row = el("div", { class: "ll-past-row", role: "row", "data-run": run.id },
    cell("pick", pickBox(run, picked >= 0, send), ...number),
    cell("name",
      el("span", { class: "ll-past-title" },
        starButton(run, send), el("b", { text: run.title || run.label || run.id })),
      ...(run.title ? [el("span", { text: run.label })] : []),
      el("span", { class: "ll-dim", text: run.what }),
      el("span", { class: "ll-run-id ll-dim", text: run.id })),
    cell("state", lamp, el("span", { text: run.state })),
    cell("steps", run.steps ? `${step} / ${formatCount(run.steps)}` : step),
    cell("loss", formatLoss(run.loss)),
    cell("metrics", ...unbroken(run.metrics ? run.metrics.split(" · ") : [])),
    cell("when", run.when),
    cell("acts", ...runButtons(run, open, send, asked)));
  row.dataset.llState = run.state;
  return row;
}

/** The star of a run, to be given and taken. */
function starButton(run, send) {
  return button(run.starred ? "★" : "☆", () =>
    send("mark", run.id, { starred: !run.starred }), {
    class: "ll-past-star", "aria-label": `star ${run.id}`, "aria-pressed": String(run.starred),
    title: run.starred ? "take the star away" : "give it a star",
  });
}

function pickBox(run, picked, send) {
  const box = el("input", {
    type: "checkbox", class: "ll-tick", "aria-label": `compare ${run.id}`,
    on: { change: () => send("pick", run.id, box.checked) },
  });
  box.checked = picked;
  return box;
}

function runButtons(run, open, send, asked) {
  const text = open ? "Hide" : "Show";
  const show = button(text, () => send("show", run.id, !open), {
    "aria-label": `${text} ${run.id}`, "aria-expanded": String(open),
  });
  const resume = button("Resume", () => send("resume", run.id), {
    "aria-label": `Resume ${run.id}`,
  });
  const remove = sureButton("Delete", "Sure?", run.id, () => send("delete", run.id), asked);
  remove.title = "the run's folder, its adapter included; click twice";
  remove.disabled = !run.deletable;
  const keep = button("Keep", () => send("keep", run.id), {
    "aria-label": `Keep ${run.id}`, title: "save it, download it, use it, go on from it",
  });
  return [
    show, ...(run.keepable ? [keep] : []), ...(run.resumable ? [resume] : []), remove,
  ];
}

/** {node, draw(compared)}: a row for each of the picked runs, and in what they differ. */
export function compareTable() {
  const table = el("table");
  const note = el("p", { class: "ll-dim" });
  const differs = el("table");
  const title = el("div", { class: "ll-title ll-past-differs" });
  const head = (text) => el("th", { text, scope: "col" });
  const number = (i) => [el("b", { text: i + 1 }), curveMark(i)];
  const row = ({ label, cells }, i) => el("tr", {},
    el("td", { class: "ll-past-pick" }, ...number(i)),
    el("th", { text: label, scope: "row" }),
    ...cells.map((text) => el("td", {}, ...unbroken(text.split(" · ")))));
  const drawDiffering = (rows, settings) => {
    title.textContent = settings.length ? "Settings that differ" : "No setting differs";
    title.hidden = rows.length < 2;
    const runs = rows.map(({ label }, i) => el("th", { scope: "col" },
      el("span", { class: "ll-past-pick" }, ...number(i)),
      el("span", { class: "ll-sr", text: label })));
    differs.replaceChildren(...(settings.length ? [
      el("thead", {}, el("tr", {}, head("setting"), ...runs)),
      el("tbody", {}, ...settings.map(([name, values]) => el("tr", {},
        el("th", { text: name, scope: "row" }), ...values.map((text) => el("td", { text }))))),
    ] : []));
  };
  const draw = ({ columns = [], rows = [], note: text = "", differs: settings = [] }) => {
    const place = el("th", { scope: "col" }, el("span", { class: "ll-sr", text: "number" }));
    table.replaceChildren(
      el("thead", {}, el("tr", {}, place, ...["run", ...columns].map(head))),
      el("tbody", {}, ...rows.map(row)));
    note.textContent = text;
    drawDiffering(rows, settings);
  };
  const node = el("div", {}, scrolling("comparison of the picked runs", table), note, title,
    scrolling("settings in which the picked runs differ", differs));
  return { node, draw };
}

/** A table that may be wider than its place. */
function scrolling(label, table) {
  return el("div", {
    class: "ll-past-scroll", tabindex: 0, role: "region", "aria-label": label,
  }, table);
}

/** {node, draw(details)}: what a run is called, and what is noted of it. */
function markForm(send) {
  let id = "";
  let drawn = "";
  const title = el("input", { class: "ll-input", type: "text", maxlength: 200 });
  const note = el("textarea", { class: "ll-input", rows: 2, maxlength: 4000 });
  const save = button("Save name and note", () =>
    send("mark", id, { title: title.value, note: note.value }));
  const caption = (text, input) =>
    el("label", { class: "ll-field" }, el("span", { class: "ll-dim", text }), input);
  const node = el("div", { class: "ll-past-marks" },
    caption("name", title), caption("note", note), save);
  const draw = (details) => {
    const news = JSON.stringify([details.id, details.title, details.note]);
    if (news === drawn) return; // what is being typed stays
    drawn = news;
    id = details.id;
    title.value = details.title ?? "";
    note.value = details.note ?? "";
  };
  return { node, draw };
}

/** {node, draw(details), resize(width)}: one run; `link` opens the report that was written. */
export function runDetails(send, link) {
  const title = el("span", { class: "ll-title" });
  let id = "";
  const report = button("Write the report", () => send("report", id), {
    title: "report.html in the run's folder: what its files tell, with every figure",
  });
  const marks = markForm(send);
  const facts = el("dl", { class: "ll-past-facts" });
  const config = el("pre", { class: "ll-past-config", tabindex: 0 });
  const samples = el("div", { class: "ll-past-samples" });
  const chart = new LossChart();
  const node = el("div", { class: "ll-card ll-past-details" },
    el("div", { class: "ll-head" }, title, space(), link, report),
    marks.node, chart.node, facts, config, samples);
  const answer = (name, text) => el("div", {},
    el("span", { class: "ll-dim", text: name }),
    el("div", { class: "ll-past-text", text: text || "–" }));
  const draw = (details) => {
    node.hidden = !details.id;
    if (!details.id) return;
    id = details.id;
    title.textContent = details.label;
    report.disabled = !details.reportable;
    marks.draw(details);
    facts.replaceChildren(...details.facts.flatMap(([name, text]) =>
      [el("dt", { class: "ll-dim", text: name }), el("dd", { text })]));
    config.textContent = details.config;
    chart.draw(details.points, details.points.at(-1)?.[0] ?? 0, details.unit);
    samples.replaceChildren(...details.samples.map(({ prompt, base, adapted }) => el("article", {},
      answer("prompt", prompt), answer("base model", base), answer("adapted", adapted))));
  };
  return { node, draw, resize: (width) => chart.resize(width) };
}
