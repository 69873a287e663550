"""Memory on the device: what is forecast of it, and what becomes of a run that has too little."""

from __future__ import annotations

import gc
import itertools
from typing import Any, NamedTuple

import torch
from transformers import GPT2Config, LlamaConfig

import lora_lab as ll
from benchmarks._measure import Row
from benchmarks.gpu.lines import Place
from lora_lab.configs import TrainingConfig
from lora_lab.errors import RunError
from lora_lab.models import LoadedModel
from lora_lab.tasks import Example, GenerationTask
from lora_lab.tasks.families.api import longest_example
from lora_lab.training.gpu_memory import Forecast, gpu_memory
from tests.helpers.loop_memory import loop_reading, model_in
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

PLAN = ll.LoraConfig(r=8, target_modules="all-linear")
ASKED, FITS = 16, 4  # examples a pass
MIB = 2**20


class Shape(NamedTuple):
    """What is trained, in which dtype.

    Attributes:
        heads: of keys and values; fewer than of queries is grouped-query attention.
    """

    name: str
    plan: Any
    dtype: torch.dtype
    heads: int = 4
    checkpointing: bool = False


SHAPES = (
    Shape("llama", PLAN, torch.bfloat16),
    Shape("llama", PLAN, torch.float32),  # grouped queries in float32: the math kernel
    Shape("llama", PLAN, torch.bfloat16, checkpointing=True),
    Shape("llama", ll.FullConfig(), torch.bfloat16, heads=8),
    Shape("gpt2", PLAN, torch.float16),
    Shape("gpt2", ll.FullConfig(), torch.float32),
)


def dry_runs(place: Place) -> list[Row]:
    """Compare the dry run's peak with the allocator's, of real steps."""
    return [_dry_run(place, shape) for shape in (SHAPES[2:4] if place.small else SHAPES)]


def _dry_run(place: Place, shape: Shape) -> Row:
    batch, length = (2, 32) if place.small else (8, 512)
    on_gpu = place.device == "cuda"
    if on_gpu:
        allocated(place)  # without what the lines before this one left
        torch.cuda.empty_cache()
    config = _config(place, shape)
    reading = loop_reading(
        model_in(config, shape.dtype, place.device),
        shape.plan,
        place.folder,
        batch=batch,
        length=length,
        gradient_checkpointing=shape.checkpointing,
    )
    found = ll.dry_run(
        config,
        shape.plan,
        batch_size=batch,
        sequence_length=length,
        dtype=shape.dtype,
        gradient_checkpointing=shape.checkpointing,
        cuda=on_gpu,
        device=place.device,
    )
    # The meter counts what the allocator handed out, not what it keeps for later.
    expected = found.device_peak - found.extras["cached blocks"] if on_gpu else found.peak
    off = expected / reading.peak - 1
    words = ("LoRA" if shape.plan is PLAN else "FT", "checkpointing" if shape.checkpointing else "")
    what = (
        f"{shape.name}, {str(shape.dtype).removeprefix('torch.')}, {', '.join(filter(None, words))}"
    )
    return Row(
        f"dry run against the peak: {what}, {batch} × {length}",
        f"{off:+.1%}",
        "± 5%",
        abs(off) <= 0.05,
        f"{expected / MIB:,.0f} against {reading.peak / MIB:,.0f} MiB",
    )


def _config(place: Place, shape: Shape) -> Any:
    width, layers, vocabulary = (64, 2, 256) if place.small else (512, 6, 8192)
    if shape.name == "llama":
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=shape.heads,
            use_cache=False,
        )
    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=8,
        n_positions=512,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


def spent(place: Place) -> list[Row]:
    """Run out of memory between two steps; then take the batch that the failed run proposes."""
    on_gpu = place.device == "cuda"
    lm, task = _wide(place), _task()
    training = TrainingConfig(
        max_steps=3, eval_examples=0, per_device_train_batch_size=ASKED, max_length=200
    )

    def train(settings: TrainingConfig, **options: Any) -> ll.Run:
        folder = place.folder / "spent"
        return ll.train(lm, task, PLAN, output_dir=folder, **settings.to_dict(), **options)

    train(training.replace(max_steps=1)).result()  # libraries have what they keep for good
    ll.detach(lm.model)
    before, room = allocated(place), _room(lm, task, training) if on_gpu else 0
    hog: list[torch.Tensor] = []
    calls = itertools.count(1)

    def others_come(_module: Any, _inputs: Any, options: Any) -> None:
        if options["input_ids"].shape[0] == ASKED and next(calls) == 2:
            if not on_gpu:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            hog.append(_take_all_but(lm, room))

    run = train(training, start=False)
    hook = lm.model.register_forward_pre_hook(others_come, with_kwargs=True)
    said = "nothing"
    try:
        run.start().result()
    except RunError as error:
        said = str(error)
    hook.remove()
    adapter, problem = run.adapter, run.snapshot.failure
    kept = sum(p.nbytes for p in adapter.parameters()) if adapter else 0
    held = allocated(place) - before - sum(each.nbytes for each in hog) - kept
    ll.detach(lm.model)
    proposal = dict(problem.proposal) if problem else {}
    steps = len(train(training.replace(**proposal)).result().losses)
    size = proposal.get("per_device_train_batch_size", ASKED)
    return [
        Row("out of memory in step 2", said[:120], "one line that says so", "memory" in said),
        Row(
            "memory that the failed run holds beside its adapter",
            f"{held / MIB:.1f} MiB" if on_gpu else "not counted",
            "≤ 1 MiB",
            held <= MIB if on_gpu else None,
        ),
        Row(
            f"the batch that is proposed in place of {ASKED}",
            f"{size}: {steps} steps",
            f"{FITS}: 3 steps" if on_gpu else "fewer: 3 steps",
            steps == 3 and (size == FITS if on_gpu else size < ASKED),
        ),
    ]


def _wide(place: Place) -> LoadedModel:
    """A batch is hundreds of MB: the allocator's odds and ends are few."""
    sizes = {} if place.small else {"hidden_size": 512, "intermediate_size": 1536}
    heads = {} if place.small else {"num_attention_heads": 8, "num_key_value_heads": 4}
    layers = 2 if place.small else 6
    sizes |= {"num_hidden_layers": layers, "max_position_embeddings": 512}
    model: Any = tiny_llama(**sizes, **heads)
    return LoadedModel.given(model.to(place.device), tiny_tokenizer(), "wide-llama")


def _task() -> GenerationTask:
    examples = [Example(f"{i:03} " * 30, f"{i:03} " * 10, (str(i),)) for i in range(48)]
    return GenerationTask("numbers", True, examples, examples[:2])


def allocated(place: Place) -> int:
    """Return the bytes of live tensors on the GPU; cuBLAS makes its workspaces anew."""
    gc.collect()
    if place.device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


def _room(lm: LoadedModel, task: Any, training: TrainingConfig) -> int:
    """Return what a pass of FITS examples takes by the forecast, and a third more."""
    length = longest_example(lm, task, training.max_length).read
    return int(1.3 * Forecast(lm.model, PLAN, training, length, lm.model.device)(FITS))


def _take_all_but(lm: LoadedModel, room: int) -> torch.Tensor:
    torch.cuda.empty_cache()
    memory = gpu_memory(lm.model.device)
    assert memory is not None
    return torch.empty(memory.free - room, dtype=torch.uint8, device=lm.model.device)
