"""Adapter layers by hand: where they stand, what they compute, values that show mistakes."""

import torch

VARIANTS = ["H", "L", "P", "D"]
# {architecture: [(a stack's blocks, what closes attention, what closes the MLP)]}
STACKS = {
    "gpt2": [("transformer.h", "attn.c_proj", "mlp.c_proj")],
    "llama": [("model.layers", "self_attn.o_proj", "mlp.down_proj")],
    "falcon-multi-query": [
        ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    ],
    "opt": [("model.decoder.layers", "self_attn.out_proj", "fc2")],
    "bert": [("bert.encoder.layer", "attention.output.dense", "output.dense")],
    "t5": [
        ("encoder.block", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"),
        ("decoder.block", "layer.0.SelfAttention.o", "layer.2.DenseReluDense.wo"),
    ],
}


def places_by_hand(name, model, variant):
    """Return [(number of the block, path)] by the table above."""
    found = []
    for stack, attention, mlp in STACKS[name]:
        for number in range(len(model.get_submodule(stack))):
            block = f"{stack}.{number}"
            closing = {"H": [attention, mlp], "L": [""]}.get(variant, [mlp])
            found += [(number, f"{block}.{leaf}".rstrip(".")) for leaf in closing]
    return found


def layer_by_hand(x, values):
    """Return x + W_up·max(0, W_down·x + b) + c, or with LN(x) below W_down."""
    read = x
    if "norm" in values:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        read = (x - mean) / (variance + 1e-5).sqrt() * values["norm"] + values["norm_bias"]
    hidden = (read @ values["down"].T + values["down_bias"]).clamp(min=0)
    return x + hidden @ values["up"].T + values["up_bias"]


def hooked_by_hand(model, values):
    """Hang the formula behind modules; values: {path: {name: tensor}}."""

    def behind(own):
        def hook(_module, _inputs, output):
            if isinstance(output, tuple):
                return (layer_by_hand(output[0], own), *output[1:])
            return layer_by_hand(output, own)

        return hook

    for path, own in values.items():
        model.get_submodule(path).register_forward_hook(behind(own))
    return model


def stir(adapter, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def values_of(adapter, paths):
    """Return {path: {name: copy that takes a gradient}} of an adapter's layers."""
    state = adapter.state()
    names = ("down", "down_bias", "up", "up_bias", "norm", "norm_bias")
    return {
        path: {
            name: state[key].detach().double().clone().requires_grad_()
            for name in names
            if (key := f"{path}.{name}") in state
        }
        for path in paths
    }


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
