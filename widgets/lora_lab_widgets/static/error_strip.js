// The red strip: what happened, what to try, and the traceback for who wants it. Text only.

/** Returns {node, draw({message, remedy, details} or null)}. */
function errorStrip() {
  const message = el("b");
  const remedy = el("div");
  const trace = el("pre", { class: "ll-trace", tabindex: 0 });
  const details = el("details", {}, el("summary", { text: "details" }), trace);
  const node = el("div", { class: "ll-error", role: "alert", hidden: true }, message, remedy, details);
  let shown = "";
  const draw = (problem) => {
    const text = JSON.stringify(problem ?? null);
    if (text === shown) return; // so that opened details stay open
    shown = text;
    node.hidden = !problem?.message;
    message.textContent = problem?.message ?? "";
    remedy.textContent = problem?.remedy ?? "";
    trace.textContent = problem?.details ?? "";
    details.hidden = !problem?.details;
    details.open = false;
  };
  return { node, draw };
}
