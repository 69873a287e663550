"""A tiny model with AdaLoRA, and a training of it whose cuts are known."""

import torch

import lora_lab as ll
from tests.helpers.tiny_models import tiny, tiny_inputs

STEPS = 12


def config(**changes) -> ll.AdaLoraConfig:
    """Cuts after steps 4, 6, 8 and, the last one, 9."""
    settings = {"target_r": 1, "init_r": 3, "tinit": 2, "tfinal": 3, "deltaT": 2, "lora_alpha": 6}
    return ll.AdaLoraConfig(**{**settings, "target_modules": "all-linear", **changes})


def attached(name="llama", seed=0, double=False, **changes):
    model = tiny(name)
    model = model.double() if double else model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model, ll.attach(model, config(**changes))


def stirred(adapter) -> None:
    """Give λ values, so that every number counts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for site in adapter.sites.values():
            site.lambdas.copy_(torch.randn(site.r, generator=generator))


def optimizer_of(adapter, kind=torch.optim.AdamW, **settings):
    return kind(adapter.parameters(), **{"lr": 2e-2, **settings})


def train(model, adapter, optimizer, steps, first=1):
    """Take steps first … first + steps − 1; every step has its own batch."""
    losses = []
    for step in range(first, first + steps):
        batch = tiny_inputs(model, batch=2, length=8, seed=step)
        loss = model(**batch, labels=batch["input_ids"]).loss
        losses.append(loss.item())
        penalty = adapter.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def trained(name="llama", steps=STEPS, **changes):
    model, adapter = attached(name, **changes)
    optimizer = optimizer_of(adapter)
    adapter.begin_training(optimizer, STEPS)
    train(model, adapter, optimizer, steps)
    return model, adapter, optimizer


def logits(model, batch=None):
    with torch.no_grad():
        return model(**(batch or tiny_inputs(model, batch=2))).logits


def emptied(name="llama", roles=("q", "k", "v"), layer=1):
    """A model whose adapter has no triplet left at some sites of one layer."""
    model, adapter = attached(name)
    stirred(adapter)
    with torch.no_grad():
        for site in adapter.sites.values():
            if site.site.layer == layer and site.site.role in roles:
                site.kept = [False] * site.r
                list(site.gather())
    return model, adapter
