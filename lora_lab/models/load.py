"""`load_model` and what it returns: a model, its tokenizer and its card."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from lora_lab._util.building import building
from lora_lab._util.devices import device_of
from lora_lab._util.dtypes import MODEL_DTYPES, dtype_name, main_dtype
from lora_lab._util.files import user_path
from lora_lab._util.hardware import best_device, hardware, is_here
from lora_lab._util.own_random import seeded
from lora_lab._util.quiet import first_line, quiet_transformers
from lora_lab._util.torch_modes import plain_modes
from lora_lab._util.transformers_private import origin
from lora_lab.anatomy.heads import is_classifier
from lora_lab.anatomy.model_config import build_on_meta
from lora_lab.anatomy.packed import packed_numbers, packing
from lora_lab.anatomy.vocabulary import check_vocabulary
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import ModelError, as_cause
from lora_lab.models import classifier, foreign
from lora_lab.models.entries import CATALOGUE, CatalogueEntry
from lora_lab.models.places import HUB_ID, Place, Source, find_model, load_errors, read_config
from lora_lab.redaction import shown_redacted

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@shown_redacted
@dataclass(frozen=True)
class Card:
    """What is known about a loaded model.

    Attributes:
        name: what the user asked for.
        hub_id: the same model on the hub; None for a folder or a model of the user's own.
        source: where the weights came from.
        license: of the weights; None where nothing states it.
        dtype: of the parameters, such as "float32".
        device: where they are, such as "cpu" or "cuda:0".
        parameters: how many there are, tied ones counted once.
    """

    name: str
    hub_id: str | None
    source: Source
    license: str | None
    dtype: str
    device: str
    parameters: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.parameters / 1e6:,.1f}M parameters, {self.dtype} on "
            f"{self.device} ({self.source}, license: {self.license or 'not stated'})"
        )


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model, its tokenizer (None where it reads no text) and its card."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    card: Card

    def __repr__(self) -> str:
        return f"<LoadedModel {self.card}>"

    @staticmethod
    def given(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None
    ) -> LoadedModel:
        """Wrap a model and tokenizer that the user loaded; neither is changed.

        Raises:
            ModelError: the tokenizer has tokens that the model has no embedding for.
        """
        if not hasattr(model, "get_input_embeddings"):  # DataParallel's hands nothing on
            model = unwrapped(model)
        check_vocabulary(model, tokenizer)
        path = origin(model.config)
        shown = name or path or type(unwrapped(model)).__name__
        hub_id = path if HUB_ID.fullmatch(path) and not Path(path).is_dir() else None
        return LoadedModel(model, tokenizer, _card(model, shown, hub_id, "given", None))


def catalogue() -> Mapping[str, CatalogueEntry]:
    """Return the models known by name; those without `wheel` and `shipped` are sizes alone."""
    return MappingProxyType(CATALOGUE)


def load_model(
    name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    *,
    labels: Sequence[str] | None = None,
    num_labels: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Load a model with its tokenizer; with `labels` or `num_labels`, with a classification head.

    Code that comes with a model never runs: `trust_remote_code` is off and cannot be turned on.

    Args:
        name: a catalogue name ("smollm2-135m"), a hub id ("owner/name"), or a folder with a
            config.json.
        device: "auto" takes CUDA, then MPS, then the CPU; else a torch device.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 on a CUDA device that
            computes in it, float16 on an older one that is fast in it (a T4), else float32.
        labels: the names of the classes, such as a task's `labels`. A head that the files have for
            these classes is loaded and keeps their order, and so is one for as many classes
            without names; another one starts random, and a warning tells of the one in the files.
        num_labels: how many classes, where they need no names; 1: the head gives a number.
        seed: of what starts random.

    Raises:
        ModelError: nothing of that name, no weights, weights that cannot be read, a model that
            needs code of its own, or one that has no classification head. The line says what to
            do.
    """
    target = wanted_device(device)
    kind = wanted_dtype(dtype, target)
    names = classifier.class_names(labels, num_labels)
    place = find_model(str(name))
    config = read_config(place)
    loader = classifier.classifier_class(str(name), config) if names else model_class(config)
    head = classifier.planned_head(config, names, labels is not None) if names else None
    if head:
        classifier.name_classes(config, head.names)

    def check(model: PreTrainedModel, report: Mapping[str, Any]) -> None:
        own = classifier.without_head(str(name), model, report) if names else report
        _check_report(str(name), own)
        if head:
            classifier.settle_head(str(name), model, report, head, seed)

    lm = _read(place, loader, config, target, kind, seed, check)
    if names:
        classifier.finish(lm.model, lm.tokenizer)
    return lm


def load_as(
    name: str, loader: Any, config: PretrainedConfig, dtype: str, given: Collection[str]
) -> LoadedModel:
    """Load a model onto the CPU as another class than its files name.

    Args:
        name: as in `load_model`.
        loader: the class, or an Auto class.
        config: the model's, changed as it shall be.
        dtype: as in `load_model`.
        given: names of weights that come from elsewhere, whatever the files have.

    Raises:
        ModelError: as `load_model`.
    """
    target = torch.device("cpu")

    def check(_model: PreTrainedModel, report: Mapping[str, Any]) -> None:
        mismatched = [entry for entry in report["mismatched_keys"] if entry[0] not in given]
        missing = {key for key in report["missing_keys"] if key not in given}
        _check_report(name, {"mismatched_keys": mismatched, "missing_keys": missing})

    lm = _read(find_model(name), loader, config, target, wanted_dtype(dtype, target), 0, check)
    if is_classifier(lm.model):
        classifier.finish(lm.model, lm.tokenizer)
    return lm


def _read(
    place: Place,
    loader: Any,
    config: PretrainedConfig,
    target: torch.device,
    kind: torch.dtype,
    seed: int,
    check: Callable[[PreTrainedModel, Mapping[str, Any]], None],
) -> LoadedModel:
    """Load a model and its tokenizer; `check` is given the model and what its files lacked."""
    name = place.name
    options = {"local_files_only": place.local_only, "trust_remote_code": False}
    alone: dict[str, Any] = {}
    if place.source != "embedded":
        named = getattr(config, "transformers_weights", None)
        foreign.refuse_pickles(name, place.location, named, local_only=place.local_only)
        alone = foreign.base_alone(name, place.location, local_only=place.local_only)
    try:
        with building(), quiet_transformers(), seeded(seed), plain_modes():
            model, report = loader.from_pretrained(
                place.location,
                config=config,
                dtype=kind,
                output_loading_info=True,
                use_safetensors=True,  # never a pickle
                ignore_mismatched_sizes=True,  # so that our line can name them
                **options,
                **alone,
            )
            model.to(target)
    except load_errors() as error:
        why = first_line(error)
        if "file named model.safetensors" in why:
            why += "; pickled weights are not read, so save those again with save_pretrained"
        raise ModelError(f"{name} cannot be loaded: {why}{place.fix}") from as_cause(error)
    check(model, report)
    tokenizer = _load_tokenizer(place, config, options)
    if place.source == "embedded":
        # Adapters record their base by this name: a path of this machine's cache helps nobody.
        known = place.hub_id or place.name
        model.name_or_path = model.config.name_or_path = known
        if tokenizer is not None:
            tokenizer.name_or_path = known  # which messages name
    card = _card(model, place.name, place.hub_id, place.source, place.license)
    return LoadedModel(model, tokenizer, card)


def _check_report(name: str, report: Mapping[str, Any]) -> None:
    if mismatched := sorted(report["mismatched_keys"]):
        key, in_file, in_model = mismatched[0]
        raise ModelError(
            f"{name}: the weights do not fit its config.json: {key} is {tuple(in_file)} in the "
            f"file and {tuple(in_model)} by the config; take both from the same model"
        )
    if missing := sorted(report["missing_keys"]):
        warnings.warn(
            f"{name}: {len(missing)} weights are not in the file and start random: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}",
            stacklevel=5,
        )


def load_outline(name: str | Path) -> LoadedModel:
    """Return a model without its weights, on torch's meta device, with its tokenizer.

    Raises:
        ModelError: as `load_model`.
    """
    place = find_model(str(name))
    config = read_config(place)
    options = {"local_files_only": place.local_only, "trust_remote_code": False}
    model: Any = build_on_meta(config)
    card = _card(model, place.name, place.hub_id, place.source, place.license)
    return LoadedModel(model, _load_tokenizer(place, config, options), card)


def model_config(name: str | Path) -> PretrainedConfig:
    """Return a model's transformers config, without its weights.

    Args:
        name: a catalogue name (always works, nothing is read), a hub id, or a folder.

    Raises:
        ModelError: as `load_model`.
    """
    import transformers

    entry = CATALOGUE.get(str(name))
    if entry is None:
        return read_config(find_model(str(name)))
    return getattr(transformers, entry.config_class)(**entry.config_values)


def model_class(config: PretrainedConfig) -> Any:
    """Return the transformers class that a config's `architectures` names, else an Auto class.

    The class has `from_pretrained` and `_from_config`/`from_config`.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = (config.architectures or [""])[0]
    if hasattr(transformers, named):
        return getattr(transformers, named)
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


def _load_tokenizer(
    place: Place, config: PretrainedConfig, options: Mapping[str, Any]
) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if place.source == "folder" and not _has_tokenizer_file(Path(place.location)):
        return None  # anatomy, budget and analysis need none; training asks for it by name
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(place.location, **options)
    except load_errors() as error:
        if not hasattr(config, "vocab_size"):
            return None  # it reads no text: ViT
        raise ModelError(
            f"{place.name} has no tokenizer that can be read ({first_line(error)}); save one with "
            "tokenizer.save_pretrained, or use LoadedModel.given(model, tokenizer)"
        ) from as_cause(error)


def _has_tokenizer_file(folder: Path) -> bool:
    patterns = ("tokenizer*", "vocab*", "*.model", "spiece*")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def wanted_device(device: str) -> torch.device:
    """Return the device that `load_model` takes for a name.

    Raises:
        ModelError: no device is called so, or this machine has none.
    """
    if device == "auto":
        return best_device()
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ModelError(f"no device is called {device!r}; use auto, cpu, cuda or mps") from None
    if not is_here(wanted):
        raise ModelError(f"this machine has no device {device!r}; use device='auto' or 'cpu'")
    return wanted


def wanted_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `load_model` takes for a name on a device.

    Raises:
        ModelError: no weights are of that dtype.
    """
    here = hardware(device)
    if dtype == "auto":
        return here.dtype
    if dtype not in MODEL_DTYPES:
        raise ModelError(f"dtype is {dtype!r}; use auto, {', '.join(MODEL_DTYPES)}")
    if dtype == "bfloat16" and here.cuda and not here.native_bfloat16:
        warnings.warn(
            f"{here.name() or 'this GPU'} does not compute in bfloat16 but by way of float32, "
            f"slowly; use dtype={dtype_name(here.dtype)!r}",
            stacklevel=3,
        )
    kind: torch.dtype = getattr(torch, dtype)
    return kind


def _card(
    model: PreTrainedModel, name: str, hub_id: str | None, source: Source, license_: str | None
) -> Card:
    dtype = dtype_name(main_dtype(model.parameters()) or next(model.parameters()).dtype)
    count = sum(parameter.numel() for parameter in model.parameters())
    count += sum(packed_numbers(layer)[0] for layer in model.modules() if packing(layer))
    return Card(name, hub_id, source, license_, dtype, str(device_of(model)), count)


def model_source(lm: LoadedModel, head: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `load_model` needs to load a model again; None of one that the user gave.

    Args:
        lm: the model.
        head: what its task says of the head that it needs, `Task.head`.
    """
    card = lm.card
    if card.source == "given":
        return None
    name = str(user_path(card.name, ModelError).resolve()) if card.source == "folder" else card.name
    return {
        "name": name,
        "dtype": card.dtype,
        "device": card.device.partition(":")[0],
        **head,
    }
