"""The adapters against PEFT: step, memory, switching, mixed batches, merging, attaching, import.

`python -m benchmarks.adapters` prints every row; `--only switch batch` some of them; `--only step
--runs 6 --rounds 5` the step's as the median of six fresh pairs of models (6 minutes). Ours and
PEFT's run in turn in one process, and a row is the median of the rounds' ratios. Beside each stands
its lower bound: the same work without adapters, or the bytes and operations that must move.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

import lora_lab as ll
from benchmarks import import_time
from benchmarks._measure import Row, alternate, median_ratio, print_table
from lora_lab.budget.meter import LiveStorages

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
# Llama-3.2-1B's
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
# 30 layers of 7 sites: what switching and attaching costs hangs on their number, not their size.
NARROW = {
    **SMOLLM2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 256,
}
Shape = dict[str, Any]


def llama(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """Return a model of that shape with random weights, which change no operation."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape)
    config.use_cache = False
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype).train()


def ours(model: nn.Module, r: int = 8, name: str = "default") -> nn.Module:
    """Attach LoRA on all linear sites."""
    ll.attach(model, ll.LoraConfig(r=r, lora_alpha=16, target_modules="all-linear"), name)
    return model


def pefts(model: nn.Module, r: int = 8, names: Sequence[str] = ("default",)) -> Any:
    """Attach PEFT's LoRA on the same sites, with its default dtypes."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    return wrapped


def bare(model: nn.Module) -> nn.Module:
    """Freeze a model, but let the gradient run through every layer: the floor of a step."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda _module, _inputs, y: y.requires_grad_()
    )
    return model


METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {"ours": ours, "peft": pefts, "floor": bare}


def stepper(
    model: torch.nn.Module, batch: int, length: int, device: str, dtype: torch.dtype
) -> Callable[[], None]:
    for parameter in model.parameters():
        # The base in its dtype; adapters keep their float32 masters, ours and PEFT's alike.
        parameter.data = parameter.data.to(device, None if parameter.requires_grad else dtype)
    model.to(device)  # buffers
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4) if learned else None
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))
    ids = ids.to(device)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def at_most(what: str, value: float, limit: float, note: str, unit: str = "×") -> Row:
    return Row(what, f"{value:.3f}{unit}", f"≤ {limit:g}{unit}", value <= limit, note)


# The rows -----------------------------------------------------------------------------------------


def step_rows(args: argparse.Namespace) -> list[Row]:
    """Return the time of a training step on the CPU, the base in float32 and in bf16."""
    return [
        row
        for dtype, name, reach in (
            (torch.float32, "float32", 0.88),
            (torch.bfloat16, "bf16 base", 0.80),
        )
        for row in _step_rows(args, dtype, name, reach)
    ]


def _step_rows(
    args: argparse.Namespace, dtype: torch.dtype, name: str, reach: float
) -> Iterator[Row]:
    ratios, floors, work = [], [], ""
    for _ in range(args.runs):
        models = {way: attach(llama(args.shape, dtype)) for way, attach in METHODS.items()}
        runs = {
            way: stepper(model, args.batch, args.length, "cpu", dtype)
            for way, model in models.items()
        }
        seconds = alternate(runs, args.rounds)
        ratios.append(median_ratio(seconds["ours"], seconds["peft"]))
        floors.append(median_ratio(seconds["floor"], seconds["peft"]))
        tokens, base, factors = args.batch * args.length, *_sizes(models["ours"])
        # Forward and dX of every W₀; H, BH, Z, dB, dA and dX's part of every A and B.
        work = f"{4e-9 * tokens * base:.1f} GFLOP in W₀, {6e-9 * tokens * factors:.2f} in A and B"
    every = f"median of {', '.join(f'{ratio:.3f}' for ratio in ratios)}; " if args.runs > 1 else ""
    yield at_most(
        f"training step, {args.batch * args.length} tokens, {name}, CPU",
        statistics.median(ratios),
        reach,
        f"{every}bound {statistics.median(floors):.3f}×: no adapter, gradient chain only; {work}",
    )


def memory_rows(args: argparse.Namespace) -> list[Row]:
    """Return the peak of a training step on the CPU, base in bf16, PEFT's default dtypes."""
    peaks, rows = {}, 4 * args.batch  # enough that activations, not weights, fill the memory
    for name, attach in METHODS.items():
        model = attach(llama(args.shape, torch.bfloat16))
        step = stepper(model, rows, args.length, "cpu", torch.bfloat16)
        step()  # the optimizer's state
        counter = LiveStorages([p.detach() for p in model.parameters()] + list(model.buffers()))
        with counter:
            step()
        peaks[name] = counter.peak
    return [
        at_most(
            f"peak memory, {rows * args.length} tokens, bf16 base, CPU",
            peaks["ours"] / peaks["peft"],
            0.80,
            f"{_mib(peaks['ours'])} against {_mib(peaks['peft'])}; "
            f"bound {_mib(peaks['floor'])}: no adapter",
        )
    ]


def switch_rows(args: argparse.Namespace) -> list[Row]:
    """Return the time of a switch among 2 and among 50 loaded adapters at 210 sites."""
    rows, first = [], 0.0
    for loaded in args.loaded:
        names = [f"a{i}" for i in range(loaded)]
        model = llama(NARROW)
        for name in names:
            ours(model, 1, name)
        theirs = pefts(llama(NARROW), 1, names)
        turn = [0]

        def following(turn: list[int] = turn, names: list[str] = names) -> str:
            turn[0] += 1
            return names[turn[0] % len(names)]

        seconds = alternate(
            {
                "ours": lambda model=model: ll.activate(model, following()),
                "peft": lambda theirs=theirs: theirs.set_adapter(following()),
            },
            max(args.rounds, 21),
        )
        milliseconds = {k: 1e3 * statistics.median(v) for k, v in seconds.items()}
        first = first or milliseconds["ours"]
        rows.append(
            Row(
                f"switch among {loaded} adapters, 210 sites",
                f"{milliseconds['ours']:.4f} ms",
                "≤ 0.1 ms",
                milliseconds["ours"] <= 0.1,
                f"PEFT {milliseconds['peft']:.1f} ms; {milliseconds['ours'] / first:.1f}× of "
                f"{args.loaded[0]} loaded; bound: one name stored",
            )
        )
    return rows


@torch.no_grad()
def batch_rows(args: argparse.Namespace) -> list[Row]:
    """Return the forward pass of 16 samples with 8 adapters against one adapter."""
    names = [f"a{i}" for i in range(8)]
    samples = [names[i % 8] for i in range(16)]
    model = llama(args.shape)
    for name in names:
        ours(model, 8, name)
    ll.activate(model, names[0])
    theirs = pefts(llama(args.shape), 8, names)
    ids = _ids(16, args.length, args.shape)
    model.eval()
    theirs.eval()

    def mixed() -> None:
        with ll.mixed_batch(model, samples):
            model(input_ids=ids)

    seconds = alternate(
        {
            "ours, 8": mixed,
            "ours, 1": lambda: model(input_ids=ids),
            "peft, 8": lambda: theirs(input_ids=ids, adapter_names=samples),
            "peft, 1": lambda: theirs(input_ids=ids),
        },
        min(args.rounds, 5),  # a thousand tokens each: half a minute a round
    )
    pefts_ratio = median_ratio(seconds["peft, 8"], seconds["peft, 1"])
    factors = 4 * _sizes(model)[1] / 8
    return [
        at_most(
            f"16 × {args.length} tokens with 8 adapters against one, forward",
            median_ratio(seconds["ours, 8"], seconds["ours, 1"]),
            1.10,
            f"PEFT's adapter_names {pefts_ratio:.2f}×; bound 1.00×: the same operations, "
            f"{_mib(8 * factors)} of factors read in place of {_mib(factors)}",
        ),
        Row(
            "the same batch, ours against PEFT",
            f"{median_ratio(seconds['ours, 8'], seconds['peft, 8']):.3f}×",
            "",
            None,
        ),
    ]


@torch.no_grad()
def merged_rows(args: argparse.Namespace) -> list[Row]:
    """Return the forward pass of a merged model against the bare one."""
    plain, merged = llama(args.shape).eval(), ours(llama(args.shape)).eval()
    ll.merge(merged)
    ids = _ids(args.batch, args.length, args.shape)
    seconds = alternate(
        {"ours": lambda: merged(input_ids=ids), "bare": lambda: plain(input_ids=ids)},
        max(args.rounds, 15),
    )
    ratio = median_ratio(seconds["ours"], seconds["bare"])
    same = all(type(a) is type(b) for a, b in zip(merged.modules(), plain.modules(), strict=True))
    return [
        Row(
            "merged forward against the bare model",
            f"{ratio:.3f}×",
            "1.00 ± 0.01×",
            abs(ratio - 1) <= 0.01,
            f"bound 1.00×: {'the very same' if same else 'OTHER'} layer classes and shapes",
        )
    ]


def attach_rows(args: argparse.Namespace) -> list[Row]:
    """Return the time to attach to 210 sites, and the time to draw A alone."""
    plain, seconds = llama(args.shape), []
    shapes = [tuple(s.A.shape) for s in ll.attach(plain, _ALL).sites.values()]
    ll.detach(plain)

    def draw() -> None:
        for shape in shapes:
            nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5)

    theirs: list[Any] = [llama(args.shape)]

    def attach_pefts() -> None:
        theirs.append(pefts(theirs.pop()))

    for _ in range(args.rounds + 1):
        taken = [_timed(lambda: ll.attach(plain, _ALL)), _timed(attach_pefts)]
        ll.detach(plain)
        theirs.append(theirs.pop().unload())
        seconds.append([*taken, _timed(draw)])
    own, pefts_own, bound = (1e3 * statistics.median(s) for s in zip(*seconds[1:], strict=True))
    return [
        Row(
            f"attach {len(shapes)} sites",
            f"{own:.0f} ms",
            "≤ 150 ms",
            own <= 150,
            f"PEFT {pefts_own:.0f} ms; bound {bound:.0f} ms: drawing A",
        )
    ]


_ALL = ll.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
ROWS = {
    "step": step_rows,
    "memory": memory_rows,
    "switch": switch_rows,
    "batch": batch_rows,
    "merged": merged_rows,
    "attach": attach_rows,
}


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Return the numbers in the adapted W₀ and in all A and B."""
    adapters = ll.attached(model).values()
    sites = [site for adapter in adapters for site in adapter.sites.values()]
    base = {s.site.name: s.site.out_features * s.site.in_features for s in sites}
    return sum(base.values()), sum(adapter.trainable for adapter in adapters)


def _ids(rows: int, length: int, shape: Shape) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, shape["vocab_size"], (rows, length), generator=generator)


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "import"], default=[*ROWS, "import"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1, help="the step with so many fresh models")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30, help="fewer: a quick try")
    parser.add_argument("--loaded", type=int, nargs="+", default=[2, 50])
    args = parser.parse_args(argv)
    # The vocabulary shrinks with the layers, so that their shares of the work stay as they are.
    vocabulary = SMOLLM2["vocab_size"] * args.layers // 30
    args.shape = {**SMOLLM2, "num_hidden_layers": args.layers, "vocab_size": vocabulary}

    rows: list[Row] = []
    for name in args.only:
        if name != "import":
            rows += ROWS[name](args)
            gc.collect()
    if rows:
        print_table("Adapters against PEFT, SmolLM2-135M shape, all linear, r=8", rows)
    if "import" in args.only:
        import_time.main(args.rounds)


if __name__ == "__main__":
    main()
