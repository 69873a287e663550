// @ts-check
// "Take it to a cluster": the run as a file, and the commands that train it elsewhere.

import { button, copyText, el, space } from "./_shared.js";

/** Returns {button, node, draw({path, commands} or {})}; `ask` has Python write the file. */
export function runFileBox(ask, text, title) {
  const status = el("span", { role: "status" });
  const lines = el("div");
  const close = button("Close", () => {
    node.hidden = true;
  });
  const node = el("div", { class: "ll-run-file", hidden: true },
    el("div", { class: "ll-run-row" }, status, space(), close), lines);
  const line = ({ text: command, hint }) => {
    const copy = button("Copy", async () => {
      copy.textContent = (await copyText(command)) ? "Copied" : "Select it";
      setTimeout(() => {
        copy.textContent = "Copy";
      }, 1500);
    }, { "aria-label": `copy ${command}` });
    return el("div", { class: "ll-run-file-line" },
      el("code", { text: command }), copy, el("span", { class: "ll-dim", text: hint }));
  };
  const draw = ({ path, commands = [] }) => {
    node.hidden = !path;
    if (!path) return;
    status.textContent = `wrote ${path}`;
    lines.replaceChildren(...commands.map(line));
  };
  return { button: button(text, ask, { class: "ll-button ll-run-file-ask", title }), node, draw };
}
