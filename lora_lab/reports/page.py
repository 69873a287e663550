"""One self-contained HTML page: no network, no notebook.

plotly.js is inlined once, everything that came from outside is escaped, and page and figures
follow the reader's light or dark setting. Where no script may run, as in a notebook that nobody has
called trusted, each figure is there as a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab import figures
from lora_lab._util.files import disk_errors, make_dirs, write_text_atomic
from lora_lab._util.tables import Table
from lora_lab.analysis.table import HEADER, SiteAnalysis
from lora_lab.errors import RunError
from lora_lab.redaction import redacted, redacted_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.figures._base import Figure


class Page:
    """Collects figures, so that plotly.js and the drawing code stand in the page once."""

    def __init__(self) -> None:
        self._figures: list[str] = []

    def figure(self, draw: Callable[..., Figure], data: object, caption: str) -> str:
        """Return the place of a figure; it is drawn in the theme that the reader has."""
        name = f"figure-{len(self._figures)}"
        drawn = {theme: draw(data, theme=theme) for theme in ("light", "dark")}
        height = drawn["light"].layout.height
        # Seen where no script may run, and until one has.
        pictures = "".join(
            f'<div class="picture {theme}">{_within(figures.picture(figure))}</div>'
            for theme, figure in drawn.items()
        )
        for figure in drawn.values():
            # The page's columns set the width.
            figure.update_layout(width=None, autosize=True)
        both = ",".join(f'"{theme}":{figure.to_json()}' for theme, figure in drawn.items())
        self._figures.append(f'"{name}":{{{both}}}')
        return (
            f'<figure><div id="{name}" class="plot" role="img" aria-labelledby="{name}-text" '
            f'style="height:{height}px">{pictures}</div>'
            f'<figcaption id="{name}-text">{escape(redacted(caption))}</figcaption></figure>'
        )

    def render(self, title: str, body: str) -> str:
        """Return the whole page."""
        # "<" cannot end the script element when it is written as an escape.
        drawn = f"{{{','.join(self._figures)}}}".replace("<", "\\u003c")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(redacted(title))} · LoRA Lab</title><style>{_STYLE}</style></head>\n"
            f"<body><main>\n{body}\n</main>\n"
            f"<script>{figures.plotly_js()}</script>\n"
            f'<script type="application/json" id="figures">{drawn}</script>\n'
            f"<script>{_DRAW}</script></body></html>\n"
        )

    def write(self, path: str | Path, title: str, body: Iterable[str]) -> Path:
        """Write the page, whole or not at all; its folder is made.

        Raises:
            RunError: the file cannot be written.
        """
        text = self.render(title, "\n".join(body))
        path = Path(path)
        with disk_errors(path, RunError, "another folder"):
            make_dirs(path.parent)
            write_text_atomic(path, text)
        return path


def _within(svg: str) -> str:
    """Return a picture as a page has it, which names no address for what SVG is."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


def heading(title: str, subtitle: str) -> str:
    """Return the page's head line."""
    title, subtitle = redacted(title), redacted(subtitle)
    return f"<header><h1>{escape(title)}</h1><p class='dim'>{escape(subtitle)}</p></header>"


def section(title: str, *parts: str, note: str = "") -> str:
    """Return a part of the page; `parts` are HTML, title and note are text."""
    title, note = redacted(title), redacted(note)
    small = f" <small>{escape(note)}</small>" if note else ""
    return f"<section><h2>{escape(title)}{small}</h2>{''.join(parts)}</section>"


def facts(items: Mapping[str, str]) -> str:
    """Return names with their values."""
    shown = redacted_values(dict(items))
    lines = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in shown.items())
    return f"<dl>{''.join(lines)}</dl>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of text, numbers in all columns but the first."""
    made = Table(tuple(header), tuple(map(tuple, rows)), frozenset(header[1:]))
    return f"<div class='scroll'>{made._repr_html_()}</div>"


def site_table(rows: Iterable[SiteAnalysis]) -> str:
    """Return a table of ΔW site by site."""
    return table(HEADER, (row.cells() for row in rows))


_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1f2328;--dim:#667085;--line:#e4e7ec;--card:#fbfcfd;
--accent:#3b6fd4;--ground:#f3f4f6}
@media (prefers-color-scheme:dark){:root{--bg:#111318;--fg:#e6e8ec;--dim:#98a2b3;--line:#2a2f38;
--card:#171a20;--accent:#7ea6f4;--ground:#0b0d10}}
@media print{:root{color-scheme:light;--bg:#fff;--fg:#1f2328;--dim:#667085;--line:#e4e7ec;
--card:#fbfcfd;--accent:#3b6fd4;--ground:#fff}section{break-inside:avoid}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--fg);font:14px/1.5 system-ui,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:980px;margin:24px auto;background:var(--bg);border:1px solid var(--line);
border-radius:8px;padding:28px 32px}
h1{font-size:20px;margin:0}h2{font-size:15px;margin:0 0 14px}h3{font-size:13px;margin:22px 0 8px;
overflow-wrap:anywhere}
header p{margin:2px 0 0}.dim,small{color:var(--dim);font-weight:400}small{font-size:12px;
margin-left:8px}
section{margin-top:24px;padding-top:20px;border-top:1px solid var(--line)}
.tiles{display:flex;flex-wrap:wrap;gap:16px 40px}.tiles b{display:block;font-size:20px;
font-weight:600}.tiles span{color:var(--dim);font-size:12px}
summary{color:var(--dim);font-size:12px;margin-top:10px;cursor:pointer}
figure{margin:0;min-width:0}.plot{width:100%}
.picture svg{display:block;max-width:100%;max-height:100%}.picture.dark{display:none}
@media screen and (prefers-color-scheme:dark){.picture.light{display:none}
.picture.dark{display:block}}
figcaption,.caption{color:var(--dim);font-size:12px;margin:4px 0 0}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:24px}
.scroll{overflow-x:auto;margin-top:14px}
table{border-collapse:collapse;font-size:13px;width:100%}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{font-weight:400}thead th{color:var(--dim);font-size:12px}
th:first-child,td:first-child{text-align:left;padding-left:0}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px 14px;
overflow-x:auto;font-size:13px;margin:0;white-space:pre-wrap}
article{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px 14px;
margin-top:10px}
article p{margin:0 0 8px;font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:110px 1fr;gap:4px 12px;margin:0}
dt{color:var(--dim);font-size:12px;line-height:21px}
dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.adapted{border-left:2px solid var(--accent);padding-left:10px;margin-left:-12px}
@media (max-width:700px){main{padding:18px 16px;margin:0;border-radius:0}
.pair{grid-template-columns:1fr}dl{grid-template-columns:1fr}.adapted{margin-left:0}}
"""

_DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const config = {showSendToCloud: false, displaylogo: false, displayModeBar: false,
                responsive: true};
function draw(theme) {
  for (const [id, drawn] of Object.entries(figures)) {
    const {data, layout} = structuredClone(drawn[theme]);
    for (const picture of document.querySelectorAll(`#${id} > .picture`)) picture.remove();
    Plotly.react(id, data, layout, config);
  }
}
const current = () => draw(dark.matches ? "dark" : "light");
dark.addEventListener("change", current);
addEventListener("beforeprint", () => draw("light"));
addEventListener("afterprint", current);
current();
"""
