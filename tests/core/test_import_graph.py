"""Arrows between modules run one way: no rings, and no layer imports a higher one.

`python tests/core/test_import_graph.py` prints what is wrong. An import inside a function is an
arrow like any other; what TYPE_CHECKING guards is none. Who imports a package that hands names on
lazily is taken to import all modules that its `__init__.pyi` names.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"lora_lab": ROOT / "lora_lab", "lora_lab_widgets": ROOT / "widgets/lora_lab_widgets"}
# Faces for users; of ours only those use them that do nothing but what users can do.
FACES = {"lora_lab", "lora_lab.__main__", "lora_lab.configs"}
USERS = {"paper", "cli", "lora_lab_widgets"}
# May be imported where they are used: they take long, or are not there without an extra.
HEAVY = {
    *("torch", "transformers", "datasets", "accelerate", "safetensors", "tokenizers", "gguf"),
    *("pyarrow", "openpyxl", "jinja2", "fsspec"),
    *("torchao", "bitsandbytes", "huggingface_hub", "plotly", "ray", "sacrebleu", "sklearn"),
    *("IPython", "ipykernel", "rich", "pynvml", "scipy", "wandb", "tensorboard"),
}


class Arrow(NamedTuple):
    """One import: who, what, and whether inside a function."""

    source: str
    target: str
    line: int
    local: bool


def modules() -> dict[str, Path]:
    """Return {dotted name: file} of both packages."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


def arrows(name: str, path: Path) -> list[Arrow]:
    """Return what one module imports, ours and others'."""
    found = []

    def visit(node: ast.AST, local: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, local)
            return
        line = getattr(node, "lineno", 0)
        found.extend(Arrow(name, target, line, local) for target in _targets(node))
        inside = local or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text("utf-8")), False)
    return found


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{'.' * node.level}{node.module or ''}:{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


@cache
def graph() -> tuple[dict[str, set[str]], tuple[str, ...]]:
    """Return {module: ours that it imports}, and what is wrong with single imports."""
    known = modules()
    edges: dict[str, set[str]] = {name: set() for name in known}
    wrong = []
    for name, path in known.items():
        for arrow in arrows(name, path):
            target, ours, handed_on = _resolve(arrow.target, known)
            where = f"{name}: {'local ' if arrow.local else ''}import of {target}"
            if not ours:
                if arrow.local and target.split(".")[0] not in HEAVY:
                    wrong.append(where)
                continue
            if arrow.local:
                wrong.append(where)
            if handed_on:
                wrong.append(f"{name}: {handed_on} by way of {target}, which only hands it on")
            edges[name] |= {target, *_packages_run(name, target, known)} - {name}
            edges[name] |= _handed_on(target, known)
    return edges, tuple(wrong)


def _resolve(target: str, known: Mapping[str, Path]) -> tuple[str, bool, str]:
    """Return the module meant, whether it is ours, and a name that a lazy package hands on."""
    module, _, member = target.partition(":")
    if module.split(".")[0] not in PACKAGES:
        return module, False, ""
    if member and f"{module}.{member}" in known:
        return f"{module}.{member}", True, ""
    lazy = member and known[module].with_suffix(".pyi").is_file()
    return module, True, member if lazy and not member.startswith("__") else ""


def _handed_on(package: str, known: Mapping[str, Path]) -> set[str]:
    """Return the modules whose names a lazy package hands on; none of any other module."""
    face = known[package].with_suffix(".pyi")
    if not face.is_file():
        return set()
    nodes = ast.walk(ast.parse(face.read_text("utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {
        f"{package}.{name}"
        for node in imports
        for name in ([node.module] if node.module else [alias.name for alias in node.names])
    }


def _packages_run(source: str, target: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the packages whose own code runs when a module of theirs is imported from outside."""
    parts = target.split(".")
    for n in range(2, len(parts)):
        package = ".".join(parts[:n])
        if not f"{source}.".startswith(f"{package}."):
            yield package


def rings(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(edges.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            ring = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(ring) > 1:
                found.append(sorted(ring))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def layers() -> dict[str, int]:
    """Return {folder: its layer, from the ground up} as `docs/design.md` draws them."""
    folders = {folder(name) for name in modules()}
    text = (ROOT / "docs/design.md").read_text("utf-8")
    drawing = re.search(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    assert drawing is not None
    return {
        word: number
        for number, line in enumerate(drawing[0].splitlines())
        for word in re.split(r"\s{2,}", line.strip())
        if word in folders
    }


def folder(module: str) -> str:
    """Return the folder of a module, or the file where it stands at the top."""
    package, *rest = module.split(".")
    return package if package != "lora_lab" or not rest else rest[0]


def upward() -> list[str]:
    """Return the arrows from a folder to one that stands above it."""
    level = layers()
    found = set()
    for source, targets in graph()[0].items():
        for target in targets:
            if target in FACES and source not in FACES and folder(source) not in USERS:
                found.add(f"{source} → {target}, a face for users")
            elif (
                target not in FACES
                and source not in FACES
                and level[folder(target)] > level[folder(source)]
            ):
                found.add(f"{source} → {target}, which stands above it")
    return sorted(found)


def between_folders() -> dict[str, set[str]]:
    """Return {folder: folders that it imports}."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for source, targets in graph()[0].items():
        if source not in FACES:
            found[folder(source)] |= {folder(target) for target in targets} - {folder(source)}
    return dict(found)


def violations() -> list[str]:
    """Return all that is wrong, a line each."""
    edges, wrong = graph()
    return [
        *(f"ring of modules: {', '.join(ring)}" for ring in rings(edges)),
        *(f"ring of folders: {', '.join(ring)}" for ring in rings(between_folders())),
        *upward(),
        *sorted(set(wrong)),
    ]


def test_arrows_run_one_way() -> None:
    assert violations() == []


def test_every_folder_has_a_layer() -> None:
    named = {folder(name) for name in modules()} - {folder(face) for face in FACES}
    assert named == set(layers())


def test_rings_are_found() -> None:
    made = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert sorted(rings(made)) == [["b", "c"], ["e", "f"]]


def test_local_imports_count_and_guarded_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "made.py"
    path.write_text(
        "import torch\nif TYPE_CHECKING:\n    import ray\n"
        "def f():\n    from lora_lab.runs import lock\n    importlib.import_module('json')\n"
    )
    assert [arrow[1:] for arrow in arrows("made", path)] == [
        ("torch", 1, False),
        ("lora_lab.runs:lock", 5, True),
        ("json", 6, True),
    ]


if __name__ == "__main__":
    print("\n".join(violations()))
