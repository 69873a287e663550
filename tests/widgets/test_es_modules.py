"""The files of ``static/`` as one ES module: what is joined, and what is refused with its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_lab_widgets.workbench  # noqa: F401  defines every panel
from lora_lab_widgets.es_modules import collect, join
from lora_lab_widgets.panel import STATIC, PanelWidget

UNKNOWN = "an import or declaration of a kind"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.js").write_text(text, encoding="utf-8")
    return folder / "main.js"


def test_each_module_once_and_after_what_it_imports(tmp_path: Path) -> None:
    entry = write(
        tmp_path,
        main='import { b } from "./b.js";\nimport { a } from "./a.js";\nexport default a + b;\n',
        b='import { a } from "./a.js";\nexport const b = a + 1;\n',
        a="// one\nexport const a = 1;\n",
    )
    modules = collect(entry)
    assert [module.path.name for module in modules] == ["a.js", "b.js", "main.js"]
    text = "// one\nconst a = 1;\n\nconst b = a + 1;\n\nexport default a + b;\n"
    assert join(modules) == text


def test_types_are_for_tools_alone(tmp_path: Path) -> None:
    doc = "/**\n * @param {number} a\n */\n"
    cast = "  /** @type {HTMLElement} */ (a).focus();\n"
    inner = f"  /** @type {{string}} */\n  const b = 2;\n{cast}  c(/** @type {{any}} */ (b));\n"
    entry = write(tmp_path, main=f"{doc}export default function a(a) {{\n{inner}}}\n")
    left = f"  const b = 2;\n{cast}  c(/** @type {{any}} */ (b));\n"
    assert join(collect(entry)) == f"export default function a(a) {{\n{left}}}\n"


def test_an_import_may_take_several_lines_and_other_code_may_say_import(tmp_path: Path) -> None:
    entry = write(
        tmp_path,
        main='import {\n  a,\n  b,\n} from "./a.js";\nconst c = () =>\n  import(b);\n',
        a="export async function a() {\n  const c = 1;\n  return c;\n}\nexport class b {}\n",
    )
    text = join(collect(entry))
    assert text.startswith("async function a() {\n  const c = 1;")
    assert text.endswith("const c = () =>\n  import(b);\n")


@pytest.mark.parametrize(
    ("main", "other", "error"),
    [
        ('import { a } from "./none.js";\n', "", "main.js:1: there is no file none.js"),
        ('\nimport { a } from "./a.js";\n', "const a = 1;\n", "main.js:2: a.js exports no a"),
        ('import { b } from "./a.js";\n', "export const a = 1;\n", "main.js:1: a.js exports no b"),
        (
            'import { a as b } from "./a.js";\n',
            "export let a;\n",
            "main.js:1: a.js exports no a as b",
        ),
        (
            'import { a } from "./a.js";\nlet b;\n',
            "let b;\nexport let a;\n",
            "main.js:2: b .*a.js:1",
        ),
        (
            'import { a } from "./a.js";\nlet a;\n',
            "export let a;\n",
            "main.js:2: a is declared .*a.js:1",
        ),
        ("let a;\n\nfunction a() {}\n", "", "main.js:3: a is declared at .*main.js:1"),
        (
            'import {} from "./a.js";\n',
            "let a;\nexport default a;\n",
            "a.js:2: .*main.js:1 imports",
        ),
        ('import {} from "./a.js";\n', 'import {} from "./main.js";\n', "a.js:1: main.js imports"),
        ('import {} from "./main.js";\n', "", "main.js:1: main.js imports"),
        ('import a from "./a.js";\n', "", "main.js:1: " + UNKNOWN),
        ('import { a } from "https://x/a.js";\n', "", "main.js:1: " + UNKNOWN),
        ('import "./a.js";\n', "", "main.js:1: " + UNKNOWN),
        ("let a;\nexport { a };\n", "", "main.js:2: " + UNKNOWN),
        ('export * from "./a.js";\n', "", "main.js:1: " + UNKNOWN),
        ("const { a } = window;\n", "", "main.js:1: " + UNKNOWN),
        ("var a;\n", "", "main.js:1: " + UNKNOWN),
    ],
)
def test_what_it_cannot_join_is_refused_with_its_place(
    main: str, other: str, error: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=error):
        collect(write(tmp_path, main=main, a=other))


def test_a_panel_that_cannot_be_joined_cannot_be_defined() -> None:
    with pytest.raises(FileNotFoundError, match="no_such"):
        type("Broken", (PanelWidget,), {"module": "no_such"})


def test_every_file_serves_a_panel() -> None:
    used = {
        module.path.stem
        for panel in _subclasses(PanelWidget)
        if "module" in vars(panel) and panel.__module__.startswith("lora_lab_widgets.")
        for module in collect(STATIC / f"{panel.module}.js")
    }
    stems = {path.stem for path in STATIC.iterdir()}
    assert stems == used | {"theme"}


def _subclasses(panel: type[PanelWidget]) -> Iterator[type[PanelWidget]]:
    for each in panel.__subclasses__():
        yield each
        yield from _subclasses(each)
