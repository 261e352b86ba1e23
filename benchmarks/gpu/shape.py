"""The sizes that are measured; letters: N tokens, D model width, C latents."""

from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One size and the dtype of all operands; fp32 operands ask for exact fp32 active sets."""

    tokens: int
    width: int
    latents: int
    precision: str  # a key of DTYPES
    active: int = 64  # wanted active latents of a token, and k
    document_tokens: int = 1024

    @property
    def dtype(self) -> torch.dtype:
        """Of x, the gradient and both weight matrices."""
        return DTYPES[self.precision]

    @property
    def product_flops(self) -> float:
        """Of one dense product with the encoder, or with the decoder."""
        return 2.0 * self.tokens * self.width * self.latents

    @property
    def operand_bytes(self) -> float:
        """x and one weight matrix, once each."""
        return self.dtype.itemsize * float(self.tokens + self.latents) * self.width

    @property
    def dense_elements(self) -> float:
        """Of one [N, C]."""
        return float(self.tokens) * self.latents

    def __str__(self) -> str:
        return f"D = {self.width:,}, C = {self.latents:,}, {self.precision}"


def _shapes(tokens: int, *sizes: tuple[int, int, str]) -> tuple[Shape, ...]:
    return tuple(Shape(tokens=tokens, width=d, latents=c, precision=precision) for d, c, precision in sizes)


# In the order in which they are measured: what matters most comes first, for the time may run out.
FULL = _shapes(
    16384,
    (2304, 16384, "bf16"),
    (576, 16384, "bf16"),
    (2304, 65536, "bf16"),
    (4096, 131072, "bf16"),
    (2304, 65536, "fp32"),
    (576, 16384, "fp32"),
    (3584, 1048576, "bf16"),
)
SMALL = tuple(
    Shape(tokens=37, width=24, latents=150, precision=precision, active=6, document_tokens=10)
    for precision in ("bf16", "fp32")
)
