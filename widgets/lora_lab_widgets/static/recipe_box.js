// "Take it to a cluster": the run as a file, and the commands that train it elsewhere.

import { copyText, el } from "./_shared.js";

/** Returns {button, node, draw({path, commands} or {})}; `ask` has Python write the file. */
export function recipeBox(ask) {
  const button = el("button", { class: "ll-button ll-recipe-ask", type: "button", text: "Take it to a cluster" });
  button.title = "write what is set up here to a run file, for lora-lab train on another machine";
  button.addEventListener("click", ask);
  const said = el("span", { role: "status" });
  const lines = el("div");
  const close = el("button", { class: "ll-button", type: "button", text: "Close" });
  const node = el("div", { class: "ll-recipe", hidden: true },
    el("div", { class: "ll-run-row" }, said, el("span", { class: "ll-space" }), close), lines);
  close.addEventListener("click", () => { node.hidden = true; });
  const line = ({ text, hint }) => {
    const copy = el("button", { class: "ll-button", type: "button", text: "Copy", "aria-label": `copy ${text}` });
    copy.addEventListener("click", async () => {
      copy.textContent = (await copyText(text)) ? "Copied" : "Select it";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    return el("div", { class: "ll-recipe-line" },
      el("code", { text }), copy, el("span", { class: "ll-dim", text: hint }));
  };
  const draw = ({ path, commands = [] }) => {
    node.hidden = !path;
    if (!path) return;
    said.textContent = `wrote ${path}`;
    lines.replaceChildren(...commands.map(line));
  };
  return { button, node, draw };
}
