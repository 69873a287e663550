"""One training step on all linear sites, r=8, against PEFT; the floor is no adapter at all.

Shape and dtypes are SmolLM2-135M's in float32; the weights are random, which changes no operation.
The floor is the frozen model with its gradient chain (dY·W of every layer) and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks._measure import Row, alternate, median_ratio, print_table

REACH = 0.95


def smollm2() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    config.use_cache = False
    return LlamaForCausalLM(config).train()


def ours() -> torch.nn.Module:
    import lora_lab as ll

    model = smollm2()
    ll.attach(model, ll.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    return model


def pefts() -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(smollm2(), config)


def floor() -> torch.nn.Module:
    model = smollm2().requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, y: y.requires_grad_()
    )
    return model


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args(argv)

    models = {"ours": ours(), "peft": pefts(), "floor": floor()}
    dtype = getattr(torch, args.dtype)
    runs = {
        name: stepper(model, args.batch, args.length, args.device, dtype)
        for name, model in models.items()
    }
    seconds = alternate(runs, args.rounds)
    ratio = median_ratio(seconds["ours"], seconds["peft"])
    lowest = median_ratio(seconds["floor"], seconds["peft"])
    print_table(
        f"Training step, SmolLM2-135M shape, all linear, r=8, {args.batch} × {args.length} tokens, "
        f"{args.dtype} on {args.device}",
        [
            Row(
                "step time against PEFT",
                f"{ratio:.3f}×",
                f"≤ {REACH}×",
                ratio <= REACH,
                f"median of {args.rounds} alternating rounds",
            ),
            Row("floor: no adapter, gradient chain only", f"{lowest:.3f}×", "", None),
        ],
    )


if __name__ == "__main__":
    main()
