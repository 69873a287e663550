"""One ES module out of the several that a panel's is written in, joined when it is sent.

Hosts import a panel's module from a blob URL, where relative imports cannot resolve. So the files
of ``static/`` import each other for tools to read, and here they are put behind each other, each
once and after what it imports. They share one scope then, which is why no two of them may declare
the same name at the top. What may stand at the start of a line is little, and all of it is checked:

    import { name, other } from "./file.js";
    export function name …        export class … and export const … alike
    export default …              in the first module alone
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STATEMENT = re.compile(
    r"""^(?:
      import\ \{(?P<names>[\w$,\s]*)\}\ from\ "\./(?P<file>\w+\.js)";\n
    | (?P<default>export\ default\ )
    | (?P<export>export\ )?(?:async\ )?(?:function\*?|class|const|let)\ (?P<name>[\w$]+)
    | (?P<other>(?:import|export|async|function|class|const|let|var)\b[^\n]*)
    )""",
    re.MULTILINE | re.VERBOSE,
)
_FOR_TOOLS = re.compile(r"^ */\*\*(?:(?!\*/).)*\*/\n", re.MULTILINE | re.DOTALL)  # JSDoc


@dataclass(frozen=True)
class Import:
    """One ``import { names } from "./file"``, and where it stands: "path:line"."""

    names: tuple[str, ...]
    file: str
    where: str


@dataclass(frozen=True)
class Module:
    """A file of JavaScript: its text without ``import`` lines and the word ``export``.

    Attributes:
        declared: each name of its top level and where, "path:line".
        exported: those of them that others may import.
        default: where its ``export default`` stands, "" without one.
    """

    path: Path
    text: str
    imports: tuple[Import, ...]
    declared: tuple[tuple[str, str], ...]
    exported: frozenset[str]
    default: str


def collect(path: Path) -> list[Module]:
    """Return a module behind all that it imports, each of them once.

    Raises:
        ValueError: names file and line of an import or export that cannot be read, of a file or
            name that is imported and not there, of a ring of imports, of a name that is
            declared twice, and of an ``export default`` in an imported module.
    """
    found: dict[Path, Module | None] = {}  # None while what it imports is being read
    _visit(path, found)
    modules = [module for module in found.values() if module is not None]
    _refuse_clashes(modules)
    return modules


def join(modules: Sequence[Module]) -> str:
    """Return one ES module; it exports what the last of `modules` has as its default.

    Without JSDoc: a page that is reloaded waits for the modules of all panels.
    """
    return "\n".join(_FOR_TOOLS.sub("", module.text) for module in modules)


def _visit(path: Path, found: dict[Path, Module | None]) -> Module:
    found[path] = None
    module = _read(path)
    for each in module.imports:
        target = path.parent / each.file
        if target not in found:
            if not target.is_file():
                raise ValueError(f"{each.where}: there is no file {each.file}")
            _visit(target, found)
        other = found[target]
        if other is None:
            raise ValueError(f"{each.where}: {each.file} imports this module, directly or not")
        if other.default:
            raise ValueError(f"{other.default}: {each.where} imports this module: no default here")
        for name in each.names:
            if name not in other.exported:
                raise ValueError(f"{each.where}: {each.file} exports no {name}")
    del found[path]  # so that it stands behind what it imports
    found[path] = module
    return module


def _read(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    imports: list[Import] = []
    declared: list[tuple[str, str]] = []
    exported: set[str] = set()
    default = ""
    pieces: list[str] = []
    end = 0
    for match in _STATEMENT.finditer(text):
        line = 1 + text.count("\n", 0, match.start())
        where = f"{path}:{line}"
        pieces.append(text[end : match.start()])
        kept = match[0]
        if match["other"]:
            raise ValueError(
                f"{where}: an import or declaration of a kind that es_modules.py does not read"
            )
        if match["file"]:
            names = [name.strip() for name in match["names"].split(",")]
            imports.append(Import(tuple(filter(None, names)), match["file"], where))
            kept = ""
        elif match["default"]:
            default = where
        else:
            declared.append((match["name"], where))
            if match["export"]:
                exported.add(match["name"])
                kept = kept.removeprefix(match["export"])
        pieces.append(kept)
        end = match.end()
    pieces.append(text[end:])
    return Module(
        path, "".join(pieces), tuple(imports), tuple(declared), frozenset(exported), default
    )


def _refuse_clashes(modules: Sequence[Module]) -> None:
    first: dict[str, str] = {}
    for module in modules:
        for name, where in module.declared:
            if name in first:
                raise ValueError(f"{where}: {name} is declared at {first[name]} too")
            first[name] = where
