// @ts-check
// The runs on disk. Draws `form`, `compared` and `details`; what people do goes out as messages.

import { PanelView, button, el, heading, opener, panel, section, space } from "./_shared.js";
import { reportLink } from "./delivery.js";
import { errorStrip } from "./error_strip.js";
import { compareTable, runDetails, runList } from "./history_table.js";
import { LossCurves } from "./loss_curves.js";
import { term } from "./term.js";

class HistoryView extends PanelView {
  build() {
    const { model } = this;
    const send = (type, id = undefined, value = undefined) => model.send({ type, id, value });
    this.opener = opener("Open the runs", () => send("open", "", !model.get("form").open));
    this.status = el("span", { class: "ll-dim", role: "status" });
    this.folder = el("span", { class: "ll-past-folder ll-dim" });
    this.list = runList(send);
    this.curves = new LossCurves();
    this.table = compareTable();
    this.comparison = el("div", { class: "ll-card ll-past-compared" },
      heading("Compared", term(["training-loss", "nats"])), this.curves.node, this.table.node);
    this.link = reportLink(model);
    this.details = runDetails(send, this.link.node);
    this.strip = errorStrip();
    this.body = el("div", { class: "ll-past-body" },
      el("div", { class: "ll-past-line" },
        this.folder, space(), this.status, button("Refresh", () => send("refresh"))),
      this.list.node, this.list.empty, this.comparison, this.details.node);
    return section("ll-history", "runs on disk",
      heading("Runs", term(["run", "run-states"]), "what was trained before: compare, open, resume",
        space(), this.opener.node),
      this.body, this.strip.node);
  }

  follow() {
    this.watch(() => this.drawForm(), "form");
    this.watch(() => this.drawCompared(), "compared");
    this.watch(() => this.drawDetails(), "details");
    this.watch(() => this.drawBusy(), "busy");
    this.watch(() => this.strip.draw(this.model.get("problem")), "problem");
    this.listen({
      "msg:custom": () => this.opener.answered(),
      "change:offer": () => this.link.take(),
    });
    this.closers.push(() => this.link.close());
    this.watchSize(() => this.resize());
  }

  drawForm() {
    const form = this.model.get("form");
    this.opener.draw(form.open);
    this.body.hidden = !form.open;
    const count = form.total > form.rows.length
      ? `the newest ${form.rows.length} of ${form.total} runs`
      : `${form.total} run${form.total === 1 ? "" : "s"}`;
    this.folder.textContent = `${count} in ${form.folder}; tick up to six to compare them`;
    this.drawList();
    this.drawBusy();
  }

  drawList() {
    this.list.draw(this.model.get("form"), this.model.get("details").id ?? "");
  }

  drawCompared() {
    const compared = this.model.get("compared");
    this.comparison.hidden = !compared.rows?.length;
    if (this.comparison.hidden) return;
    const labels = new Map(compared.rows.map(({ id, label }) => [id, label]));
    this.curves.draw(compared.curves.map(({ id, points }) =>
      ({ label: labels.get(id) ?? id, points })), compared.unit);
    this.table.draw(compared);
  }

  drawDetails() {
    this.details.draw(this.model.get("details"));
    this.link.of(this.model.get("details").id);
    this.drawList();
  }

  drawBusy() {
    const busy = this.model.get("busy");
    this.status.textContent = busy;
    this.root.dataset.llState = busy ? "busy" : "rest";
    this.list.empty.hidden = Boolean(busy || this.model.get("form").rows.length);
  }

  resize() {
    const width = Math.floor(this.root.clientWidth - 30);
    this.curves.resize(width);
    this.details.resize(width);
  }
}

export default panel(HistoryView);
