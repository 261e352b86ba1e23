"""Something that can be called, checked and timed; letters: N tokens, C latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variant:
    """One way to do an operator at one shape. `missing` says why there is no `call`."""

    operator: str
    name: str
    call: Callable[[], Any] = lambda: None
    check: Callable[[Any], None]  # raises WrongAnswer
    flops: float  # of the arithmetic that this way does
    bytes_moved: float  # by formula: operands and answer once, and every pass over a dense [N, C]
    needs_bytes: float = 0.0  # scratch and answer, generously: it is skipped where they do not fit
    needs_seconds: float = 3.0  # of the first call, compilers included; it is skipped where that much is not left
    missing: str = ""
    is_ours: bool = False  # an error of ours fails the command; one of a rival's is reported as "not available"

    @property
    def key(self) -> str:
        """Its name inside a shape."""
        return f"{self.operator}: {self.name}"


class WrongAnswer(ValueError):
    """A variant's answer differs from the truth by more than its precision allows."""


def unavailable(operator: str, name: str, reason: str) -> Variant:
    """A line that says why it is empty."""
    return Variant(
        operator=operator, name=name, check=lambda _: None, flops=0.0, bytes_moved=0.0, missing=reason, is_ours=False
    )
