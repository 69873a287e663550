// The workbench's title line. Texts are names from outside: textContent only.

function render({ model, el, signal }) {
  const line = document.createElement("div");
  line.className = "ll-panel ll-header";

  const paint = () => {
    const title = document.createElement("b");
    title.className = "ll-header-title";
    title.textContent = "LoRA Lab";
    const chips = model.get("chips").map((text) => {
      const chip = document.createElement("span");
      chip.className = "ll-chip";
      chip.textContent = text;
      return chip;
    });
    const device = document.createElement("span");
    device.className = "ll-header-device ll-dim";
    device.textContent = [model.get("device"), model.get("others")].filter(Boolean).join(" · ");
    line.replaceChildren(title, ...chips, device);
  };

  const names = ["change:chips", "change:device", "change:others"];
  for (const name of names) model.on(name, paint);
  paint();
  el.replaceChildren(line);
  const leave = () => {
    for (const name of names) model.off(name, paint);
  };
  signal?.addEventListener("abort", leave);
  return leave;
}

export default { render };
