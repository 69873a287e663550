// @ts-check
// How a file's columns are read: what was proposed, its first rows, and another reading to choose.

import { el, formatCount } from "./_shared.js";
import { explainedField, term } from "./term.js";

const KNOWN = "by its layout";
const FILE = /\.(csv|tsv|txt|jsonl|ndjson|json|parquet|arrow|feather|xlsx)(\.gz)?$/i;

/** {node, draw(data, kinds, chosen, isTask)}; `choose` is called with {option: column}. */
export class ChooserColumns {
  /** @param {(options: Record<string, string>) => void} choose */
  constructor(choose) {
    this.choose = choose;
    this.kind = el("select", { class: "ll-input", on: { change: () => this.takeKind() } });
    this.columns = el("span", { class: "ll-chooser-row" });
    this.config = el("input", { class: "ll-input", type: "text" });
    this.config.addEventListener("change", () => this.send({}));
    this.configField =
      explainedField("configuration", this.config, term("configuration"));
    this.line = el("div", { role: "status" });
    this.table = el("table", { class: "ll-chooser-rows" });
    this.scroller = el("div", {
      class: "ll-chooser-scroll", tabindex: 0, role: "region", "aria-label": "the first rows",
    }, this.table);
    this.form = el("div", { class: "ll-chooser-row" },
      explainedField("read as", this.kind, term(["columns", "task"])), this.columns);
    this.node = el("div", { class: "ll-chooser-data" },
      this.configField, this.form, this.line, this.scroller);
  }

  draw(data, kinds, chosen, isTask) {
    this.data = data;
    this.kinds = kinds;
    this.options = chosen.options;
    const { columns = [], rows = 0, first = [], line = "", problem = "" } = data;
    this.configField.hidden = isTask || FILE.test(chosen.data);
    this.config.value = chosen.options.config_name ?? "";
    this.form.hidden = this.scroller.hidden = !columns.length;
    const told = rows ? `${formatCount(rows)} row${rows === 1 ? "" : "s"}` : "";
    this.line.textContent = problem || [told, line].filter(Boolean).join(": ");
    this.line.classList.toggle("ll-chooser-bad", Boolean(problem));
    const roles = Object.keys(this.options).filter((name) => name !== "config_name");
    const kind = Object.keys(kinds).find((name) => same(kinds[name], roles)) ?? KNOWN;
    this.kind.replaceChildren(...[KNOWN, ...Object.keys(kinds)].map((text) =>
      el("option", { text })));
    this.kind.value = kind;
    this.columns.replaceChildren(...(kinds[kind] ?? []).map((role) => this.column(role)));
    this.table.replaceChildren(
      el("tr", {}, ...columns.map((text) => el("th", { scope: "col", text }))),
      ...first.map((row) => el("tr", {}, ...row.map((text) => el("td", { text })))));
  }

  /** The choice of one option's column. */
  column(role) {
    const node = el("select", { class: "ll-input", "aria-label": role });
    const chosen = this.options[role];
    const names = this.data.columns ?? [];
    const all = names.includes(chosen) ? names : [...names, chosen]; // a nested one has no head
    node.append(...all.map((text) => el("option", { text })));
    node.value = chosen;
    node.addEventListener("change", () => this.send({ ...this.roles(), [role]: node.value }));
    return labelled(role, node);
  }

  roles() {
    return Object.fromEntries(
      Object.entries(this.options).filter(([name]) => name !== "config_name"));
  }

  takeKind() {
    const names = this.data.columns ?? [];
    const roles = this.kinds[this.kind.value] ?? [];
    this.send(Object.fromEntries(roles.map((role, at) =>
      [role, this.options[role] ?? names[Math.min(at, names.length - 1)]])));
  }

  send(roles) {
    const config = this.config.value.trim();
    this.choose(config ? { ...roles, config_name: config } : roles);
  }
}

function same(a, b) {
  return a.length === b.length && a.every((name) => b.includes(name));
}

function labelled(text, node) {
  return el("label", { class: "ll-field" }, el("span", { class: "ll-dim", text }), node);
}
