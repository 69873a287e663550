"""A saved adapter and its base, written in another form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lora_lab._util.files import disk_errors, new_dir, refuse_taken, user_path, write_text_atomic
from lora_lab._util.format import format_bytes, plural
from lora_lab.checkpoint.base_model import load_base
from lora_lab.checkpoint.card import CARD_FILE, model_card
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.locate import locate_adapter
from lora_lab.checkpoint.loralib_models import save_loralib
from lora_lab.checkpoint.merged import export_merged
from lora_lab.checkpoint.peft import read_settings
from lora_lab.checkpoint.reader import read_adapter
from lora_lab.checkpoint.saving import write_adapter
from lora_lab.checkpoint.uniform import export_uniform
from lora_lab.errors import AdapterError
from lora_lab.models.load import LoadedModel
from lora_lab.redaction import redacted, shown_redacted

Form = Literal["peft", "uniform", "merged", "loralib"]
FORMS: tuple[Form, ...] = get_args(Form)


@shown_redacted
@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        form: "peft", "uniform", "merged" or "loralib".
        out: the folder, or loralib's file.
        adapter: what was exported.
        base: its base model.
        files: {name: bytes}.
        lora_alpha: α to make loralib's layers with; None of the other forms.
        note: one line, where a run's adapter is not that of its end.
    """

    form: Form
    out: Path
    adapter: str
    base: str
    files: dict[str, int]
    lora_alpha: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "format": self.form,
            "out": str(self.out),
            "adapter": self.adapter,
            "base": self.base,
            "files": self.files,
            "bytes": sum(self.files.values()),
            "lora_alpha": self.lora_alpha,
            "note": self.note,
        }

    def __str__(self) -> str:
        size = format_bytes(sum(self.files.values()))
        count = plural(len(self.files), "file")
        lines = [f"{self.form}  {self.out}  ({count}, {size})"]
        if self.lora_alpha is not None:
            lines.append(f"make loralib's layers with lora_alpha={self.lora_alpha:g}")
        return "\n".join([*lines, self.note]).rstrip()


def export_adapter(
    adapter: str | Path, base: str, form: Form, out: str | Path, dtype: str | None = None
) -> Exported:
    """Write a saved adapter in another form; folders get a model card.

    Args:
        adapter: a folder in PEFT's format, or a run's folder: then the card tells of the run.
        base: the base model: a catalogue name, a hub id or a folder.
        form: "peft"; "uniform" for loaders without rank patterns; "merged": base and adapter as one
            model; "loralib": one file, .safetensors or .pt.
        out: a new or empty folder, or a new file.
        dtype: of the merged weights, such as "bfloat16"; the base's own by default.

    Raises:
        LoraLabError: in one line, what cannot be read, does not fit or cannot be written.
    """
    out = user_path(out, AdapterError)
    if dtype is not None and form != "merged":
        raise AdapterError("a dtype is for merged models; leave it out (--dtype)")
    if form == "loralib" and out.exists():
        raise AdapterError(f"{out} is there already; name a new file")
    if form != "loralib":
        refuse_taken(out)
    place = locate_adapter(adapter)
    read_settings(place.path)  # LoRA's alone; before the base is loaded, which takes longer
    lm = load_base(base, read_adapter(place.path))
    load_adapter(lm.model, place.path)
    alpha = write_form(lm, form, out, run=place.run, dtype=dtype)
    written = sorted(out.iterdir()) if out.is_dir() else [out]
    files = {file.name: file.stat().st_size for file in written}
    return Exported(form, out, place.name, base, files, alpha, place.note)


def write_form(
    lm: LoadedModel,
    form: Form,
    out: Path,
    name: str | None = None,
    *,
    run: Path | None = None,
    dtype: str | None = None,
) -> float | None:
    """Write an adapter that is on a model in a form; folders get a model card.

    Args:
        lm: the model, which stays as it is, its tokenizer and its card.
        form, out, dtype: see `export_adapter`.
        name: which adapter; the one in force by default.
        run: the folder of the run that made it: then the card tells of it.

    Returns:
        α to make loralib's layers with; None of the other forms.

    Raises:
        AdapterError: the form cannot hold such an adapter, or the place is taken.
    """
    if form == "loralib":
        return save_loralib(lm.model, out, name)
    card = model_card(lm.model, name, run=run, base=lm.card, merged=form == "merged")
    if form == "peft":
        with new_dir(out) as folder:
            write_adapter(lm.model, folder, name)
    elif form == "uniform":
        export_uniform(lm.model, out, name)
    else:
        kind = getattr(torch, dtype) if dtype else None
        export_merged(lm.model, out, name, dtype=kind, tokenizer=lm.tokenizer)
    with disk_errors(out, AdapterError, "another folder"):
        write_text_atomic(out / CARD_FILE, redacted(card))
    return None
