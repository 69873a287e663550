// One prompt, two answers. Everything the models say is set as text, never as markup.

import { el, listen } from "./_shared.js";
import { errorStrip } from "./error_strip.js";

function render({ model, el: host, signal }) {
  const prompt = el("textarea", { class: "ll-input ll-try-prompt", rows: 3, "aria-label": "prompt", spellcheck: "false" });
  const tokens = el("input", { class: "ll-input ll-try-tokens", type: "text", inputmode: "numeric", "aria-label": "max new tokens" });
  const button = el("button", { class: "ll-button ll-primary", type: "button", text: "Compare" });
  const status = el("span", { class: "ll-try-status ll-dim", role: "status", "aria-live": "polite" });
  const strip = errorStrip();
  const column = (name) => {
    const text = el("div", { class: "ll-answer", tabindex: 0, role: "region", "aria-label": `answer of the ${name}` });
    return { text, node: el("div", {}, el("div", { class: "ll-head" }, el("span", { class: "ll-title", text: name })), text) };
  };
  const base = column("base model");
  const adapted = column("adapted model");
  const length = el("label", { class: "ll-try-length ll-dim" }, "max new tokens", tokens);
  const subtitle = el("span");
  const root = el(
    "section",
    { class: "ll-panel ll-try", "aria-label": "try it", "data-lm-suppress-shortcuts": "true" },
    el(
      "div",
      { class: "ll-head" },
      el("span", { class: "ll-title", text: "Try it" }),
      subtitle,
    ),
    prompt,
    el("div", { class: "ll-bar" }, button, length, status),
    strip.node,
    el("div", { class: "ll-try-answers" }, base.node, adapted.node),
  );

  const say = (column_, text, placeholder) => {
    column_.text.textContent = text ?? placeholder;
    column_.text.classList.toggle("ll-dim", text === null || text === undefined);
  };
  const draw = () => {
    const busy = model.get("busy");
    const { prompt: asked, base: plain, adapted: tuned, seconds } = model.get("answers");
    root.dataset.llState = busy ? "busy" : asked === undefined ? "idle" : "done";
    button.disabled = Boolean(busy);
    const stale = asked !== undefined && asked !== model.get("prompt");
    if (busy) status.textContent = busy;
    else if (asked === undefined) status.textContent = "";
    else status.textContent = stale ? "the answers are to an earlier prompt" : `took ${seconds} s`;
    root.classList.toggle("ll-stale", stale || Boolean(busy));
    say(base, plain, "what the model says by itself");
    say(adapted, tuned, asked === undefined ? "what it says with the adapter" : "no adapter yet: start a run first");
    strip.draw(model.get("problem"));
    tokens.toggleAttribute("aria-invalid", model.get("problem")?.field === "max_new_tokens");
  };
  const drawInputs = () => {
    const writes = model.get("writes");
    subtitle.textContent = writes
      ? "one prompt, answered without and with the adapter"
      : "one text, classified without and with the adapter";
    length.hidden = !writes;
    if (prompt.value !== model.get("prompt")) prompt.value = model.get("prompt");
    if (tokens.getRootNode().activeElement !== tokens) tokens.value = model.get("max_new_tokens");
    draw();
  };
  const compare = () => {
    if (model.get("busy")) return;
    const number = Number(tokens.value);
    model.send({
      type: "compare",
      prompt: prompt.value,
      max_new_tokens: Number.isInteger(number) && number > 0 ? number : tokens.value,
    });
    status.textContent = "waiting for the kernel…"; // until its first word comes
  };
  // The page's other views follow as one types; Python hears of it with the next comparison.
  prompt.addEventListener("input", () => model.set("prompt", prompt.value));
  button.addEventListener("click", compare);
  root.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook has shortcuts of its own
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) compare();
  });

  const unlisten = listen(model, {
    "change:prompt": drawInputs,
    "change:max_new_tokens": drawInputs,
    "change:writes": drawInputs,
    "change:busy": draw,
    "change:answers": draw,
    "change:problem": draw,
  });
  host.append(root);
  drawInputs();
  const cleanup = () => {
    unlisten();
    root.remove();
  };
  signal?.addEventListener("abort", cleanup);
  return cleanup;
}

export default { render };
