"""The sizes of real language models, and of tiny ones of the same two families."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["Gemma 2", "Llama 3.1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LmShape:
    """What decides over the cost of a causal language model with gated MLPs and grouped queries."""

    name: str
    family: Family
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int

    def __str__(self) -> str:
        return self.name

    def site_layers(self, count: int) -> tuple[int, ...]:
        """The layers of `count` sites, spread evenly; one alone has half of the layers above it.

        >>> GEMMA_2_2B.site_layers(1), LLAMA_3_1_8B.site_layers(1)
        ((12,), (15,))
        """
        return tuple(-(-(2 * place + 1) * self.layers // (2 * count)) - 1 for place in range(count))

    def layers_above(self, count: int) -> int:
        """Layers that a backward pass goes through to the lowest of `count` sites."""
        return self.layers - 1 - self.site_layers(count)[0]


GEMMA_2_2B = LmShape(
    name="Gemma-2-2b",
    family="Gemma 2",
    width=2304,
    layers=26,
    heads=8,
    kv_heads=4,
    head_width=256,
    mlp_width=9216,
    vocabulary=256_000,
)
LLAMA_3_1_8B = LmShape(
    name="Llama-3.1-8B",
    family="Llama 3.1",
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_width=128,
    mlp_width=14_336,
    vocabulary=128_256,
)
TINY_GEMMA = LmShape(
    name="tiny Gemma",
    family="Gemma 2",
    width=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=16,
    mlp_width=128,
    vocabulary=512,
)
TINY_LLAMA = LmShape(
    name="tiny Llama",
    family="Llama 3.1",
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=16,
    mlp_width=128,
    vocabulary=512,
)
