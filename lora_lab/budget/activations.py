"""What a training step keeps for its backward pass, in closed form, block by block.

The rules are those of torch's autograd on transformers' modules, with SDPA attention: a frozen
linear layer keeps nothing, a trained or adapted one keeps its input, norms keep theirs, a fused
attention kernel keeps q, k, v and its output, the math kernel the scores, an activation function
what its own formula needs, and the loss a chunk of log-probabilities in float32.

N is tokens a step (batch × sequence), e the bytes of an element of the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lora_lab._util.dtypes import DTYPES
from lora_lab.budget.gpu import Gpu
from lora_lab.budget.kernels import Attention, Kernel, kernel_of, math_note
from lora_lab.methods.cost import STAGES_A_BLOCK
from lora_lab.tasks.chunk_rows import chunk_rows

if TYPE_CHECKING:
    from lora_lab.anatomy.types import ModelShape, Site

FLOAT32 = 4
LABEL = 8  # bytes of an int64
_FUSED = "fused"  # which one of them makes no difference to what is kept

# Model types whose peak the tests measure, operation by operation, and hold to 2 %.
_MEASURED = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "opt")

# Where in a block a role reads its input; what is kept later in the block comes after.
_STAGES = {"q": 1, "k": 1, "v": 1, "o": 3, "gate": 5, "up": 5, "down": 7}

# Tensors of size N·d_ff that an activation function keeps, and how many its backward pass holds at
# once. Functions written in Python (gelu_new: 0.5·x·(1 + tanh(…))) keep every factor.
_ACTIVATIONS = {
    "silu": (1, 2),
    "swish": (1, 2),
    "gelu": (1, 2),
    "gelu_pytorch_tanh": (1, 2),
    "relu": (1, 2),
    "relu2": (1, 2),
    "tanh": (1, 2),
    "quick_gelu": (2, 3),
    "gelu_10": (2, 3),
    "gelu_python": (3, 3),
    "gelu_new": (4, 3),
    "gelu_python_tanh": (4, 3),
    "gelu_accurate": (4, 3),
    "gelu_fast": (7, 3),
}


@dataclass(frozen=True)
class Batch:
    """The size of one training step."""

    batch_size: int
    sequence_length: int
    element: int  # bytes of an element in the model's dtype
    stream: int  # of one in the residual stream, and of what norms read
    padding_mask: bool = False  # sequences of several lengths: attention gets a mask as a tensor
    dtype: str = "float32"
    gpu: Gpu | None = None  # None: the CPU's kernels
    label_length: int | None = None  # tokens of a sequence that have a label; None: all
    recompute_mlp: bool = False  # where MLPs are of that form; whole blocks are not recomputed

    @property
    def tokens(self) -> int:
        """N, tokens a step."""
        return self.batch_size * self.sequence_length

    @property
    def labels(self) -> int:
        """Tokens a step that have a label."""
        length = self.sequence_length
        return self.batch_size * min(self.label_length or length, length)


class Piece(NamedTuple):
    """Bytes kept by one operation, if anything before it in the model is trained."""

    order: int  # position in the model; see `order_of`
    size: int  # bytes


@dataclass(frozen=True)
class Block:
    """One block's activations, in bytes."""

    input: int  # the residual stream that enters: all that gradient checkpointing keeps
    work: int  # temporaries at the dearest moment of its backward pass
    pieces: tuple[Piece, ...]  # kept even when every weight is frozen
    normed: int  # kept besides when the norms' own weights are trained


@dataclass(frozen=True)
class Head:
    """What comes after the blocks: final norm, logits, loss; in bytes."""

    kept: int  # the final norm's input
    normed: int  # kept besides by full fine-tuning: what the norm and the output layer read
    loss: int  # at the dearest moment of the loss, or of the final norm's backward pass
    full_loss: int  # the same where the output layer's weight learns


class Group(NamedTuple):
    """The input that sites share: kept once, as soon as one of them learns."""

    size: int  # bytes
    spent: bool  # already freed at the block's dearest moment (the down projection's input)
    again: bool = False  # made again, and not kept, where anything before it in its block learns


def order_of(row: int, role: str) -> int:
    """Return a site's position in the model: a larger order depends on its output."""
    return row * STAGES_A_BLOCK + _STAGES.get(role.rpartition(".")[2], 1)


def is_approximate(shape: ModelShape) -> bool:
    """Whether the rules above are an estimate for this model; its counts are exact all the same."""
    return shape.model_type not in _MEASURED or not _sizes_known(shape)


def block(shape: ModelShape, row: int, sites: Sequence[Site], batch: Batch) -> Block:
    """Return what block number `row`, with these sites, keeps.

    A matrix whose part in the block is not known counts with its output: whatever follows it will
    keep about that much.
    """
    N, e, stream = batch.tokens, batch.element, batch.stream
    known = _sizes_known(shape)
    routed = [s for s in sites if s.kind == "experts"]
    sites = [s for s in sites if s.kind != "experts"]
    others = [s for s in sites if not known or s.role not in _STAGES]
    pieces = [Piece(order_of(row, s.role) + 1, N * s.out_features * e) for s in others]
    if not known:
        widest = max((s.out_features for s in sites), default=0)
        return Block(N * widest * stream, 3 * N * widest * e, tuple(pieces), normed=0)
    facts, d, d_ff = shape.block, shape.hidden_size or 0, shape.intermediate_size or 0
    again = d_ff * recomputes(shape, batch)  # act(gate) is made again, and not kept
    if routed:
        # Every token goes through several narrow MLPs, which are added up by their scores.
        several = shape.experts_per_token or 1
        pieces.append(Piece(order_of(row, "down") + 1, several * N * d * e))
        dense = any(site.role == "down" for site in sites)
        d_ff *= dense
        again *= dense
        d_ff += several * max((s.in_features for s in routed if s.out_features == d), default=0)
    start = row * STAGES_A_BLOCK
    norm = _norm_input(shape, batch, N * d)
    attention, attention_work = _attention(shape, batch)
    kept, at_once = _ACTIVATIONS.get(facts.activation or "", (1, 2))
    if shape.gated_mlp:
        kept, at_once = kept + 2, 3  # the product keeps both of its factors
    mlp = N * (kept * d_ff - again) * e
    mask = N * d * (1 if batch.gpu else stream) if facts.hidden_dropout else 0
    pieces += [
        Piece(start, norm),
        Piece(start + 2, attention),
        Piece(start + 4, (facts.norms - 1) * norm + mask),
        Piece(start + 6, mlp),
        Piece(start + 8, mask),
    ]
    # The residual's gradient waits while the branch is walked back; by the time of the
    # attention's backward pass the MLP's pieces are gone, and the norms' before it.
    gone = mlp + (facts.norms - 1) * norm
    work = N * d * stream + max(N * (at_once * d_ff + again) * e, attention_work - gone)
    normed = 0
    if facts.rms_norm:
        normed = (facts.norms * d + (sum(_widths(shape)) if facts.head_norms else 0)) * N * e
    return Block(input=N * d * stream, work=work, pieces=tuple(pieces), normed=normed)


def head(shape: ModelShape, batch: Batch) -> Head:
    """Return what comes after the last block."""
    N, e, d, facts = batch.tokens, batch.element, shape.hidden_size or 0, shape.block
    V = shape.vocab_size or 0 if facts.lm_head else 0
    # What the output layer reads, its rows with labels, their gradient, and those being added up.
    read, rows = (N * d * e, batch.labels * d * e) if V else (0, 0)
    frozen = _loss(batch, V, 0) + read + 3 * rows
    full = _loss(batch, V, V * d) + read + 2 * rows
    if not facts.final_norm:
        return Head(0, read, frozen, full)
    norm_work = 5 * N * d * FLOAT32 if facts.rms_norm else 3 * N * d * e
    normed = N * d * e * (2 if facts.rms_norm else 1)
    kept = _norm_input(shape, batch, N * d)
    return Head(kept, normed, max(frozen, norm_work), max(full, norm_work))


def _loss(batch: Batch, vocabulary: int, learned: int) -> int:
    """Return what a chunk of the loss takes: logits, log-probabilities and the head's gradients.

    Both are float32 where the model is of fewer bits, and the logits' gradient is one copy more.
    """
    if not vocabulary:
        return 0
    rows = min(batch.labels, chunk_rows(vocabulary, learned))
    logits = rows * vocabulary * (2 * FLOAT32 + (batch.element if batch.element < FLOAT32 else 0))
    several = rows < batch.labels  # then they are added up
    places = 4 * batch.tokens * LABEL
    return logits + learned * (2 * FLOAT32 if several else batch.element) + places


def group(shape: ModelShape, site: Site, batch: Batch) -> Group:
    """Return the marginal cost of training `site`: its input, once for all that read it."""
    size = batch.tokens * site.in_features * batch.element
    facts = shape.block
    if site.role == "o" and _sizes_known(shape) and _kernel(shape, batch).name == _FUSED:
        return Group(0, spent=False)  # SDPA keeps its output, which is this input
    if site.role == "down":
        same = batch.element == DTYPES[batch.dtype].size  # else it is a copy in another type
        if facts.activation == "relu" and not shape.gated_mlp and same:
            return Group(0, spent=False)  # ReLU keeps its output, which is this input
        return Group(size, spent=True, again=recomputes(shape, batch) and same)
    return Group(size, spent=False)


def recomputes(shape: ModelShape, batch: Batch) -> bool:
    """Whether the MLPs make act(gate) and what the down projection reads again."""
    return batch.recompute_mlp and shape.block.recomputes_mlp


def _sizes_known(shape: ModelShape) -> bool:
    sizes = (shape.hidden_size, shape.intermediate_size, shape.num_heads, shape.head_dim)
    return all(sizes)


def _norm_input(shape: ModelShape, batch: Batch, size: int) -> int:
    """RMSNorm works on a float32 copy and keeps that; LayerNorm keeps its input as it is."""
    if shape.block.rms_norm:
        return size * FLOAT32 + batch.tokens * FLOAT32
    return (size + 2 * batch.tokens) * batch.stream


def _widths(shape: ModelShape) -> tuple[int, int]:
    """Return the widths of q and of k."""
    heads, size = shape.num_heads or 0, shape.head_dim or 0
    return heads * size, (shape.num_kv_heads or heads) * size


def notes(shape: ModelShape, batch: Batch) -> list[str]:
    """Return what people should know of a model's attention on a GPU."""
    if batch.gpu is None or not _sizes_known(shape):
        return []
    why = _kernel(shape, batch).why
    return [math_note(why, batch.gpu)] if why else []


def _kernel(shape: ModelShape, batch: Batch) -> Kernel:
    """Return the kernel of the blocks' attention: "eager", "math", or any fused one's name."""
    facts, heads, size = shape.block, shape.num_heads or 0, shape.head_dim or 0
    if facts.eager_attention:
        return Kernel("eager")
    if batch.gpu is None:  # the CPU has no fused kernel with dropout
        return Kernel("math" if facts.attention_dropout > 0 else _FUSED)
    # Beside a mask, transformers repeats the heads that k and v share (`use_gqa_in_sdpa`).
    kv_heads = heads if batch.padding_mask or size > 256 else shape.num_kv_heads or heads
    attention = Attention(
        batch.dtype,
        heads,
        kv_heads,
        size,
        size,
        mask=batch.padding_mask,
        causal=not batch.padding_mask,
        dropout=facts.attention_dropout,
    )
    found = kernel_of(attention, batch.gpu)
    return found if found.name == "math" else Kernel(_FUSED)


def _attention(shape: ModelShape, batch: Batch) -> tuple[int, int]:
    """Return (bytes kept, temporaries of the backward pass)."""
    N, e, heads = batch.tokens, batch.element, shape.num_heads or 0
    width, narrow = _widths(shape)
    kept = _norm_input(shape, batch, N * (width + narrow)) if shape.block.head_norms else 0
    kernel, dropout = _kernel(shape, batch).name, shape.block.attention_dropout
    if kernel == _FUSED:
        kept += N * heads * FLOAT32  # log-sum-exp
        if batch.padding_mask:
            # Each layer makes the mask anew in its dtype; beside a mask, transformers repeats the
            # heads that k and v share.
            narrow = width
            kept += batch.batch_size * batch.sequence_length**2 * e
        return kept + N * 2 * (width + narrow) * e, 0
    scores = batch.batch_size * heads * batch.sequence_length**2
    if kernel == "eager" or batch.gpu is None:
        # Probabilities; with dropout its mask and the dropped probabilities too.
        return kept + 3 * N * width * e + (3 if dropout else 2) * scores * e, 3 * scores * e
    # `_scaled_dot_product_attention_math` scales copies of q and of k, repeats k's and v's heads,
    # and does it in float32. It keeps the probabilities; with dropout also those that are left,
    # and a byte for each.
    copies = 2 if dropout else 1
    kept += (3 * N * width + copies * scores) * FLOAT32 + (scores if dropout else 0)
    return kept, scores * FLOAT32 * (1 if dropout else 2)
