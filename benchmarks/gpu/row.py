"""One line of the result: what was measured, or why it was not."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from benchmarks.gpu.shape import Shape


class Status(StrEnum):
    """Only MEASURED carries numbers."""

    MEASURED = "measured"
    UNAVAILABLE = "not available"  # the device or a library cannot do it
    SKIPPED = "skipped"  # no memory or no time for it
    WRONG = "wrong"  # it ran, and its answer failed the check: it is not timed
    FAILED = "failed"  # it raised or died


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant of an operator at one shape; the numbers are None unless it was measured."""

    shape: Shape
    operator: str
    variant: str
    status: Status
    reason: str = ""
    turns: int = 0
    ms: float | None = None  # median
    ms_low: float | None = None  # 0.2 quantile
    ms_high: float | None = None  # 0.8 quantile
    tflops: float | None = None  # of the arithmetic that this variant does
    ratio: float | None = None  # to the bare product of the shape
    bytes_moved: float | None = None  # by formula
    copy_share: float | None = None  # bytes per second as a share of the measured copy rate
    peak_bytes: int | None = None  # above what was allocated before, the answer included; None on a CPU

    @classmethod
    def missing(cls, shape: Shape, operator: str, variant: str, status: Status, reason: str) -> "Row":
        """A line without numbers."""
        return cls(shape=shape, operator=operator, variant=variant, status=status, reason=reason)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """What `as_json` gave."""
        return cls(**{**values, "shape": Shape(**values["shape"]), "status": Status(values["status"])})
