// @ts-check
// The red strip: what happened, what to try, and the traceback for who wants it. Text only.

import { button, el } from "./_shared.js";

/**
 * {node, draw(problem)}; a problem is {message, remedy, details, proposal} or null. `take` is
 * called when somebody takes the settings that `proposal` names.
 * @param {() => void} [take]
 */
export function errorStrip(take) {
  const message = el("b");
  const remedy = el("div");
  const offer = button("", () => {
    offer.disabled = true; // until Python has answered
    take?.();
  }, { class: "ll-button ll-error-offer" });
  const trace = el("pre", { class: "ll-trace", tabindex: 0 });
  const details = el("details", {}, el("summary", { text: "details" }), trace);
  const node = el("div", { class: "ll-error", role: "alert", hidden: true },
    message, remedy, offer, details);
  let drawn = "";
  const draw = (problem) => {
    const text = JSON.stringify(problem ?? null);
    if (text === drawn) return; // so that opened details stay open
    drawn = text;
    node.hidden = !problem?.message;
    message.textContent = problem?.message ?? "";
    remedy.textContent = problem?.remedy ?? "";
    offer.hidden = !(take && problem?.proposal);
    offer.disabled = false;
    offer.textContent = `Take ${problem?.proposal ?? ""}`;
    trace.textContent = problem?.details ?? "";
    details.hidden = !problem?.details;
    details.open = false;
  };
  return { node, draw };
}
