"""Methods that put learned tokens among the prompt's: PreEmbed and PreLayer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MOST, MethodConfig, need_count


@dataclass(frozen=True)
class _PrefixConfig(MethodConfig):
    prefix_length: int = 8
    infix_length: int = 8

    told: ClassVar = frozenset({"prefix_length", "infix_length"})

    def __post_init__(self) -> None:
        need_count("prefix_length", self.prefix_length, least=0, most=MOST)
        need_count("infix_length", self.infix_length, least=0, most=MOST)
        if not self.tokens:
            raise ConfigError("prefix_length and infix_length are both 0; give one a token")

    @property
    def tokens(self) -> int:
        """l_p + l_i: what the usable sequence length shrinks by."""
        return self.prefix_length + self.infix_length


@dataclass(frozen=True)
class PrefixEmbedConfig(_PrefixConfig):
    """PreEmbed: special tokens with trainable word embeddings (Hu et al., 2022, section 5.1).

    The prompt is what stands before the first label that is not -100; without labels, all of the
    input. An encoder reads all of its input as the prompt; of an encoder-decoder model the encoder
    gets the tokens. The usable sequence length shrinks by l_p + l_i.

    Attributes:
        prefix_length: l_p, tokens before the prompt.
        infix_length: l_i, tokens behind the prompt.
    """

    @property
    def method(self) -> str:
        """The paper's name."""
        return "PreEmbed"


@dataclass(frozen=True)
class PrefixLayerConfig(_PrefixConfig):
    """PreLayer: special tokens whose activations are learned after every layer (same section).

    Learned is what enters each of the L blocks; what leaves the last one nothing would read. The
    tokens stand where PreEmbed's do.

    Attributes:
        prefix_length: l_p, tokens before the prompt.
        infix_length: l_i, tokens behind the prompt.
    """

    @property
    def method(self) -> str:
        """The paper's name."""
        return "PreLayer"
