"""The work of keeping an adapter: files are written, read back, packed, pushed; on threads."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lora_lab._util.files import disk_errors, make_dirs, user_path, write_text_atomic
from lora_lab._util.format import format_bytes, plural
from lora_lab._util.own_warnings import collected
from lora_lab.checkpoint.card import CARD_FILE, model_card
from lora_lab.checkpoint.convert import FORMS, Form, write_form
from lora_lab.checkpoint.locate import holds_adapter
from lora_lab.checkpoint.replacing import adapter_files
from lora_lab.checkpoint.saving import save_adapter
from lora_lab.errors import AdapterError, ConfigError, RunError
from lora_lab.methods.combined import as_config
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.registry import method_of
from lora_lab.redaction import redacted
from lora_lab.runs.run_file import read_configs
from lora_lab_widgets.defaults import example_prompt
from lora_lab_widgets.loaded_back import Probe, loaded_back

if TYPE_CHECKING:
    from lora_lab.methods.config import MethodConfig
    from lora_lab.runs.records import RunRecord
    from lora_lab_widgets.kept import Kept
    from lora_lab_widgets.session import Session

Say = Callable[[str], None]
MOST_DOWNLOAD = 200 * 2**20  # bytes of a zip that goes through the page
TEXTS: dict[Form, str] = {
    "peft": "PEFT's format",
    "uniform": "PEFT's, one rank (vLLM, LoRAX)",
    "loralib": "loralib's state dict",
    "merged": "merged model",
}
_LORA_ALONE = tuple(form for form in FORMS if form != "peft")
_FACTORS_ALONE: tuple[Form, ...] = ("uniform", "loralib")


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        place: the folder, or loralib's file.
        files: how many.
        size: bytes of them.
        check: what reading it back came to.
        notes: what there was to say meanwhile, a line each.
    """

    place: Path
    files: int
    size: int
    check: str
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return it as people read it."""
        wrote = f"{self.place} ({plural(self.files, 'file')}, {format_bytes(self.size)})"
        return [wrote, f"read back: {self.check}", *self.notes]


def form_called(name: object) -> Form:
    """Return a form by its name.

    Raises:
        ConfigError: there is none.
    """
    for form in FORMS:
        if form == name:
            return form
    raise ConfigError(f"there is no form {str(name)[:40]!r}; use one of {', '.join(FORMS)}")


def place_of(typed: object, form: Form) -> Path:
    """Return the absolute path that somebody typed; loralib's is a file.

    Raises:
        ConfigError: nothing was typed, or it cannot be a path.
    """
    text = str(typed or "").strip()
    if not text or "\0" in text:
        raise ConfigError("type a folder to save to, such as adapters/my-adapter")
    place = user_path(text, ConfigError).absolute()
    if form == "loralib" and not place.name:
        raise ConfigError("type a file to save to, such as adapters/my-adapter.safetensors")
    if form == "loralib" and place.suffix not in (".safetensors", ".pt", ".bin"):
        return place.with_name(f"{place.name}.safetensors")
    return place


def question(place: Path, form: Form) -> str:
    """Return what is to be asked before a place is written to; "" where nothing is lost.

    Raises:
        AdapterError: it cannot be written to, whatever the answer.
    """
    if form == "loralib":
        return f"{place} is there already. Replace it?" if place.is_file() else ""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise AdapterError(f"{place} is no folder; name another one")
    if not place.is_dir() or not any(place.iterdir()):
        return ""
    if form != "peft":
        raise AdapterError(f"{place} holds files already; name a new or empty folder")
    what = "an adapter" if holds_adapter(place) else plural(len([*place.iterdir()]), "file")
    lost = "that adapter and " * holds_adapter(place) + CARD_FILE
    return f"{place} holds {what} already. Replace {lost} in it? All else in it stays."


def write(session: Session, kept: Kept, form: Form, place: Path, say: Say) -> Written:
    """Write an adapter in a form, with its card, and read it back.

    Raises:
        LoraLabError: it cannot be written so, or what was read back is another one.
    """
    live = session.live_adapter
    with collected() as said:  # not printed into some cell
        say("waiting for the next step…")
        with kept.on_model(live) as name:
            say("writing…")
            alpha = _write(session, kept, form, place, name)
            say("reading it back…")
            check = loaded_back(live.lm, name, form, place, alpha, _probe(session, kept))
    notes = [*said]
    if alpha is not None:
        notes.insert(0, f"make loralib's layers with lora_alpha={alpha:g}")
    files = [*_written(place, form)]
    size = sum(file.stat().st_size for file in files)
    return Written(place, len(files), size, check, tuple(dict.fromkeys(notes)))


def _write(session: Session, kept: Kept, form: Form, place: Path, name: str) -> float | None:
    lm = session.lm
    if form == "loralib":
        with disk_errors(place, AdapterError, "another folder"):
            make_dirs(place.parent)
    if form != "peft":
        return write_form(lm, form, place, name, run=kept.folder)
    card = model_card(lm.model, name, run=kept.folder, base=lm.card)
    save_adapter(lm.model, place, name)
    with disk_errors(place, AdapterError, "another folder"):
        write_text_atomic(place / CARD_FILE, redacted(card))
    return None


def _written(place: Path, form: Form) -> Iterable[Path]:
    """Return the files of a form; a folder of PEFT's may hold others too."""
    if form == "peft":
        return (*adapter_files(place), place / CARD_FILE)
    return [place] if place.is_file() else filter(Path.is_file, place.rglob("*"))


def _probe(session: Session, kept: Kept) -> Probe:
    task = kept.run.task if kept.run is not None else session.plan.task
    return Probe(task, example_prompt(task))


def forms_for(session: Session, kept: Kept) -> dict[Form, str]:
    """Return {form: why an adapter has none such; "" where it has}."""
    config: MethodConfig | None
    if kept.record is not None:
        lora, config = _lora_of(kept.record)
        method = str(kept.record.config.get("method") or "LoRA")
    else:
        adapter = session.live_adapter.latest
        lora, method = isinstance(adapter, LoraAdapter), getattr(adapter, "method", "")
        config = adapter.config if adapter is not None else None
    why = "" if lora else f"of LoRA alone, and this is {method[:60]}"
    found: dict[Form, str] = {form: why if form in _LORA_ALONE else "" for form in FORMS}
    if lora and (more := _beside_factors(config)):
        found |= dict.fromkeys(_FACTORS_ALONE, f"of factors alone, and this {more}")
    return found


def _lora_of(record: RunRecord) -> tuple[bool, MethodConfig | None]:
    """Return whether a run is of one LoRA, and its config."""
    try:
        config = as_config(read_configs(record)[0])
    except RunError:
        return True, None  # writing it says what is wrong
    return len(config.parts) == 1 and method_of(config.parts[0]).peft_form, config


def _beside_factors(config: MethodConfig | None) -> str:
    """Say what a LoRA has beside its factors; "" where that is nothing."""
    if getattr(config, "use_dora", False):
        return "is DoRA"
    saved = getattr(config, "modules_to_save", None)
    return f"trains {', '.join(saved)[:60]} whole" if saved else ""


def packed(session: Session, kept: Kept, form: Form, say: Say) -> tuple[IO[bytes], str, Written]:
    """Write an adapter in a form, read it back, and put it into a zip.

    Returns:
        The zip, its name, and what is in it.

    Raises:
        LoraLabError: as `write`; or it is too large to go through a page.
    """
    stem = file_stem(kept, form)
    scratches = disk_errors(Path(tempfile.gettempdir()), AdapterError, "another TMPDIR")
    with scratches, tempfile.TemporaryDirectory(prefix="lora-lab-") as scratch:
        place = Path(scratch) / (f"{stem}.safetensors" if form == "loralib" else stem)
        written = write(session, kept, form, place, say)
        if written.size > MOST_DOWNLOAD:
            most = format_bytes(MOST_DOWNLOAD)
            raise ConfigError(
                f"this has {format_bytes(written.size)}, and a page takes {most} at most; save it "
                "to a folder, and copy it from there"
            )
        say("packing…")
        made = tempfile.TemporaryFile()  # noqa: SIM115  it stays open until another takes its place
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in sorted(p for p in Path(scratch).rglob("*") if p.is_file()):
                archive.write(file, file.relative_to(scratch))
    return made, f"{stem}.zip", dataclasses.replace(written, place=Path(f"{stem}.zip"))


def file_stem(kept: Kept, form: Form) -> str:
    """Return what a file of an adapter is called: the run's id, and a form that is not PEFT's."""
    stem = re.sub(r"[^\w.-]+", "-", kept.id).strip("-.")[:100] or "adapter"
    return stem if form == "peft" else f"{stem}-{form}"
