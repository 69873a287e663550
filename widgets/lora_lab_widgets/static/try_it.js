// @ts-check
// One prompt, two answers. Everything the models say is set as text, never as markup.

import { PanelView, button, el, focusIn, heading, panel, section } from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { term } from "./term.js";

class TryItView extends PanelView {
  build() {
    const { model } = this;
    // The page's other views follow as one types; Python hears of it with the next comparison.
    this.prompt = el("textarea", {
      class: "ll-input ll-try-prompt", rows: 3, "aria-label": "prompt", spellcheck: "false",
      on: { input: () => model.set("prompt", this.prompt.value) },
    });
    this.tokens = el("input", {
      class: "ll-input ll-try-tokens", type: "text", inputmode: "numeric",
      "aria-label": "max new tokens",
    });
    this.button = button("Compare", () => this.compare(), { class: "ll-button ll-primary" });
    this.status = el("span", {
      class: "ll-try-status ll-dim", role: "status", "aria-live": "polite",
    });
    this.strip = errorStrip();
    this.base = answerColumn("base model");
    this.adapted = answerColumn("adapted model");
    this.length = el("span", { class: "ll-try-length ll-dim" },
      el("label", {}, "max new tokens ", this.tokens), term(["token", "decoding"]));
    this.subtitle = el("span");
    this.framingTerm = term("framing");
    const root = section("ll-try", "try it",
      heading("Try it", this.framingTerm, this.subtitle),
      this.prompt,
      el("div", { class: "ll-bar" }, this.button, this.length, this.status),
      this.strip.node,
      el("div", { class: "ll-try-answers" }, this.base.node, this.adapted.node),
    );
    root.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.compare();
    });
    return root;
  }

  follow() {
    this.watch(() => this.drawInputs(), "prompt", "max_new_tokens", "tries", "writes", "framing");
    this.watch(() => this.draw(), "busy", "answers", "outdated", "problem");
  }

  draw() {
    const { model, root } = this;
    const busy = model.get("busy");
    const problem = model.get("problem");
    const { prompt: asked, base, adapted, seconds, of } = model.get("answers");
    const isAnswered = asked !== undefined;
    const isOfAnother = isAnswered && model.get("outdated");
    const isStale = isOfAnother || (isAnswered && asked !== model.get("prompt"));
    const outcome = isOfAnother ? `these are answers of ${of || "no adapter"}: compare again` :
      isStale ? "the answers are to an earlier prompt" : `took ${seconds} s`;
    this.status.textContent = busy || (isAnswered ? outcome : "");
    this.button.disabled = Boolean(busy);
    root.dataset.llState = busy ? "busy" : isAnswered ? "done" : "idle";
    root.classList.toggle("ll-stale", isStale || Boolean(busy));
    this.base.draw(base, "what the model says by itself: type a prompt, and press Compare");
    this.adapted.name(isAnswered ? of : "");
    this.adapted.draw(adapted,
      isAnswered ? "no adapter yet: start a run first" : "what it says with the adapter");
    this.strip.draw(problem);
    this.tokens.toggleAttribute("aria-invalid", problem?.field === "max_new_tokens");
  }

  drawInputs() {
    const { model, prompt, tokens } = this;
    const writes = model.get("writes");
    const framing = model.get("framing");
    this.subtitle.textContent = `${model.get("tries")} without and with the adapter` +
      (framing ? `; framing: ${framing}` : "");
    this.framingTerm.hidden = !framing;
    this.length.hidden = !writes;
    if (prompt.value !== model.get("prompt")) prompt.value = model.get("prompt");
    if (focusIn(tokens) !== tokens) tokens.value = model.get("max_new_tokens");
    this.draw();
  }

  compare() {
    if (this.model.get("busy")) return;
    const number = Number(this.tokens.value);
    this.model.send({
      type: "compare",
      prompt: this.prompt.value,
      max_new_tokens: Number.isInteger(number) && number > 0 ? number : this.tokens.value,
    });
    this.status.textContent = "waiting for the kernel…"; // until its first word comes
  }
}

/** {node, draw(text, placeholder), name(of whom)} */
function answerColumn(name) {
  const answer = el("div", {
    class: "ll-answer", tabindex: 0, role: "region", "aria-label": `answer of the ${name}`,
  });
  const draw = (text, placeholder) => {
    answer.textContent = text ?? placeholder;
    answer.classList.toggle("ll-dim", text === null || text === undefined);
  };
  const whose = el("span");
  const nameIt = (text) => {
    whose.textContent = text ?? "";
  };
  return { node: el("div", {}, heading(name, whose), answer), draw, name: nameIt };
}

export default panel(TryItView);
