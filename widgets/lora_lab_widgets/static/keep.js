// @ts-check
// Keep what was learned: save, download, use, go on, report, push. Draws `form`, `question` and
// `done`; what people do goes out as messages. Names and paths are set as text.

import { PanelView, button, el, heading, panel, section, space } from "./_shared.js";
import { fetchFile, reportLink, saveAs } from "./delivery.js";
import { errorStrip } from "./error_strip.js";
import { explainedField, term } from "./term.js";

const OFFERS = [ // [what is asked of Python, the button's text, what it does]
  ["use", "Use this adapter", "put it on the bench's model: grid, ΔW and “Try it” show it"],
  ["continue", "Continue from here", "a new run with the settings above that starts from it"],
  ["evaluate", "Evaluate what was learned", "score the held-out examples, as the run's end does"],
  ["report", "Report", "write report.html into the run's folder, and open it"],
];

class KeepView extends PanelView {
  build() {
    const { model } = this;
    this.wanted = false; // whether this view has asked for the file that comes
    this.had = 0; // the file that came last
    this.proposed = "";
    this.forms = el("select", { class: "ll-input ll-keep-form" });
    this.folder = el("input", {
      class: "ll-input ll-keep-path", type: "text", spellcheck: "false",
      placeholder: "adapters/my-adapter",
    });
    this.save = button("Save", () => this.ask("save"), { class: "ll-button ll-primary" });
    this.download = button("Download", () => {
      this.wanted = true;
      this.ask("download");
    }, { title: "as a zip, to this computer" });
    this.latest = button("Back to the latest run", () => model.send({ type: "latest" }));
    this.words = el("span");
    this.waits = el("p", { class: "ll-dim ll-keep-waits" });
    this.link = reportLink(model);
    this.offers = OFFERS.map(([type, text, title]) =>
      ({ type, title, node: button(text, () => model.send({ type })) }));
    this.fields = el("fieldset", { class: "ll-form ll-keep-fields", "aria-label": "this adapter" },
      el("div", { class: "ll-keep-row" },
        explainedField("as", this.forms, term(["adapter-forms", "merge"])),
        field("folder", this.folder, "ll-keep-wide"),
        this.save, this.download),
      el("div", { class: "ll-keep-row" }, ...this.offers.map(({ node }) => node), this.link.node));
    this.hub = this.buildHub();
    this.path = el("input", {
      class: "ll-input ll-keep-path", type: "text", spellcheck: "false",
      placeholder: "a folder with adapter_config.json, or a run's folder",
    });
    this.load = button("Load", () => model.send({ type: "load", folder: this.path.value }));
    this.elsewhere = el("details", { class: "ll-keep-more" },
      el("summary", { text: "the hub, and adapters from elsewhere" }),
      this.hub,
      el("div", { class: "ll-keep-row" },
        field("load an adapter", this.path, "ll-keep-wide"), this.load));
    this.status = el("span", { class: "ll-dim", role: "status", "aria-live": "polite" });
    this.question = this.buildQuestion();
    this.title = el("b");
    this.lines = el("ul", { class: "ll-keep-lines" });
    this.done = el("div", { class: "ll-keep-done", role: "status" }, this.title, this.lines);
    this.strip = errorStrip();
    return section("ll-keep", "keep what was learned",
      heading("Keep", term(["checkpoint", "run-states"]), this.words, space(), this.status,
        this.latest),
      this.waits, this.fields, this.elsewhere, this.question, this.done, this.strip.node);
  }

  buildHub() {
    this.repo = el("input", {
      class: "ll-input ll-keep-path", type: "text", spellcheck: "false",
      placeholder: "owner/name",
    });
    this.secret = el("input", { type: "checkbox", class: "ll-tick" });
    this.secret.checked = true;
    this.push = button("Push to the hub", () => this.model.send({
      type: "push", repo: this.repo.value, private: this.secret.checked,
    }));
    this.again = button("Look again", () => this.model.send({ type: "look" }));
    this.why = el("span", { class: "ll-dim ll-label" });
    const row = el("div", { class: "ll-keep-row" },
      field("repository", this.repo, "ll-keep-wide"), field("private", this.secret), this.push);
    return el("div", { class: "ll-keep-hub" }, row,
      el("div", { class: "ll-bar" }, this.why, this.again));
  }

  buildQuestion() {
    this.asked = el("span");
    this.yes = button("Go ahead", () => this.model.send(this.model.get("question").asked));
    this.no = button("Cancel", () => this.model.send({ type: "no" }));
    return el("div", { class: "ll-keep-question", role: "alert" },
      this.asked, el("div", { class: "ll-bar" }, this.yes, this.no));
  }

  follow() {
    this.watch(() => this.drawForm(), "form");
    this.watch(() => this.drawBusy(), "busy", "form", "question");
    this.watch(() => this.drawQuestion(), "question");
    this.watch(() => this.drawDone(), "done");
    this.watch(() => this.drawHub(), "hub", "form", "busy");
    this.watch(() => this.strip.draw(this.model.get("problem")), "problem");
    this.had = this.model.get("offer").token ?? 0;
    this.listen({
      "change:offer": () => {
        this.take();
        this.link.take();
      },
      "change:called": () => this.comeForward(),
    });
    this.closers.push(() => this.link.close());
  }

  ask(type) {
    this.model.send({ type, form: this.forms.value, folder: this.folder.value });
  }

  /** Something elsewhere on the page has asked for this panel. */
  comeForward() {
    this.root.scrollIntoView({ block: "nearest" });
    this.save.focus({ preventScroll: true });
  }

  // ---- drawing

  drawForm() {
    const form = this.model.get("form");
    const { words, waits, latest, folder = "", forms = [], offers = {} } = form;
    this.words.textContent = words || "save, share or go on from what a run has learned";
    this.waits.textContent = waits;
    this.waits.hidden = !waits;
    this.fields.hidden = Boolean(waits);
    this.latest.hidden = latest;
    if (folder !== this.proposed) {
      this.proposed = folder;
      this.folder.value = folder;
    }
    const before = this.forms.value;
    this.forms.replaceChildren(...forms.map(({ name, text, why }) => el("option", {
      value: name, disabled: Boolean(why), text: why ? `${text}: ${why}` : text,
    })));
    const stays = forms.some(({ name, why }) => name === before && !why);
    if (forms.length) this.forms.value = stays ? before : forms[0].name;
    for (const { type, title, node } of this.offers) {
      const why = offers[type];
      node.hidden = why === undefined;
      node.disabled = Boolean(why);
      node.title = why || title;
    }
    this.link.of(form.id);
  }

  drawHub() {
    const { why } = this.model.get("hub");
    const { waits } = this.model.get("form");
    const isBusy = Boolean(this.model.get("busy"));
    this.push.disabled = isBusy || Boolean(waits) || why !== "";
    this.load.disabled = isBusy;
    this.why.textContent = why ?? "";
    this.why.hidden = !why;
    this.again.hidden = !why;
  }

  drawBusy() {
    const busy = this.model.get("busy");
    this.status.textContent = busy;
    this.root.dataset.llState = busy ? "busy" : "rest";
    this.fields.disabled = Boolean(busy);
  }

  drawQuestion() {
    const { line } = this.model.get("question");
    const wasHidden = this.question.hidden;
    this.question.hidden = !line;
    this.asked.textContent = line ?? "";
    if (line && wasHidden) this.no.focus({ preventScroll: true });
  }

  drawDone() {
    const { title = "", lines = [] } = this.model.get("done");
    this.done.hidden = !title;
    this.title.textContent = title;
    this.lines.replaceChildren(...lines.map((text) => el("li", { text })));
  }

  /** Fetch the file that this view has asked for. */
  async take() {
    const offer = this.model.get("offer");
    const isNew = offer.kind === "zip" && offer.token !== this.had;
    if (!this.wanted || !isNew) return;
    this.had = offer.token;
    this.wanted = false;
    const blob = await fetchFile(this.model, offer, (share) => {
      this.status.textContent = `downloading… ${Math.round(100 * share)} %`;
    });
    this.status.textContent = blob ? "" : "the file did not come; press Download again";
    if (blob) saveAs(blob, offer.name);
  }
}

function field(text, node, more = "") {
  return el("label", { class: `ll-field ${more}` }, el("span", { class: "ll-dim", text }), node);
}

export default panel(KeepView);
