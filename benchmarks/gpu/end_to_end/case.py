"""What is measured: a model, some sites, a width of dictionary and a mode, and what came of it."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from benchmarks.gpu.end_to_end.lm_shape import GEMMA_2_2B, LLAMA_3_1_8B, TINY_GEMMA, TINY_LLAMA, LmShape

Preset = Literal["attribution-patching", "gradsae"]  # of the engine
ERROR_TERM: Preset = "attribution-patching"
SPLICED: Preset = "gradsae"
SHAPES = {shape.name: shape for shape in (GEMMA_2_2B, LLAMA_3_1_8B, TINY_GEMMA, TINY_LLAMA)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the result. `most_time` is the goal: engine over bare model at most; None where there is none."""

    model: str  # a key of SHAPES
    sites: int
    latents: int
    preset: Preset = ERROR_TERM
    active: int = 64  # wanted active latents of a token
    most_time: float | None = None

    @property
    def shape(self) -> LmShape:
        """That of the model."""
        return SHAPES[self.model]

    @property
    def layers_above(self) -> int:
        """Layers that backward goes through."""
        return self.shape.layers_above(self.sites)

    @property
    def site_weights(self) -> int:
        """Numbers in encoder and decoder of one site."""
        return 2 * self.latents * self.shape.width

    def __str__(self) -> str:
        sites = "1 site" if self.sites == 1 else f"{self.sites} sites"
        return f"{self.model}, {sites}, C = {self.latents:,}{', spliced' if self.preset == SPLICED else ''}"


class State(StrEnum):
    """Only MEASURED carries numbers."""

    MEASURED = "measured"
    SKIPPED = "skipped"  # no memory or no time for it
    WRONG = "wrong"  # its scores failed the check: it is not timed
    FAILED = "failed"  # it raised, or its process died
    BEGUN = "begun, not finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A case with its numbers, or with the reason why there are none. Milliseconds are of one pass over all tokens."""

    case: Case
    state: State
    reason: str = ""
    error: float | None = None  # of the influences, relative, against the dense reference
    tokens: int = 0  # scored in one pass
    tokens_per_batch: int = 0
    context: float = 0.0  # mean tokens of a window
    turns: int = 0
    bare_ms: tuple[float, float, float] | None = None  # 0.2 quantile, median, 0.8 quantile
    engine_ms: tuple[float, float, float] | None = None
    active: tuple[float, float] | None = None  # active latents of a token: fewest and most of the sites' means
    shared_weights: bool = False  # whether all sites have the same encoder and decoder
    sae_bytes: int = 0
    bare_peak_bytes: int | None = None  # above the model's weights and the SAEs; None where it is not counted
    engine_peak_bytes: int | None = None  # the same
    stages_ms: dict[str, float] | None = None  # of one further pass, on the device where it is a GPU

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Outcome":
        """What `as_json` gave."""
        pairs = {
            name: tuple(values[name]) if values[name] is not None else None
            for name in ("bare_ms", "engine_ms", "active")
        }
        return cls(**{**values, **pairs, "case": Case(**values["case"]), "state": State(values["state"])})


LITTLE = 1.05  # one site: at most 5 % more than the bare model
MOST = 1 / 0.7  # all sites: at least 70 % of the bare model's speed

# In the order in which they are measured: what matters most comes first, for the time may run out.
FULL = (
    Case(model=GEMMA_2_2B.name, sites=1, latents=65_536, most_time=LITTLE),
    Case(model=GEMMA_2_2B.name, sites=26, latents=65_536, most_time=MOST),
    Case(model=GEMMA_2_2B.name, sites=8, latents=65_536),
    Case(model=GEMMA_2_2B.name, sites=1, latents=65_536, preset=SPLICED),
    Case(model=GEMMA_2_2B.name, sites=1, latents=16_384),
    Case(model=GEMMA_2_2B.name, sites=8, latents=16_384),
    Case(model=GEMMA_2_2B.name, sites=26, latents=16_384),
    Case(model=LLAMA_3_1_8B.name, sites=1, latents=131_072),
    Case(model=LLAMA_3_1_8B.name, sites=32, latents=131_072),
    Case(model=LLAMA_3_1_8B.name, sites=1, latents=65_536, most_time=LITTLE),
    Case(model=LLAMA_3_1_8B.name, sites=8, latents=65_536),
    Case(model=LLAMA_3_1_8B.name, sites=32, latents=65_536),
    Case(model=LLAMA_3_1_8B.name, sites=1, latents=131_072, preset=SPLICED),
    Case(model=LLAMA_3_1_8B.name, sites=8, latents=131_072),
    Case(model=LLAMA_3_1_8B.name, sites=1, latents=16_384),
    Case(model=LLAMA_3_1_8B.name, sites=8, latents=16_384),
    Case(model=LLAMA_3_1_8B.name, sites=32, latents=16_384),
    Case(model=GEMMA_2_2B.name, sites=1, latents=131_072),
    Case(model=GEMMA_2_2B.name, sites=26, latents=131_072),
    Case(model=GEMMA_2_2B.name, sites=8, latents=131_072),
)
SMALL = (
    Case(model=TINY_GEMMA.name, sites=1, latents=512, active=8, most_time=LITTLE),
    Case(model=TINY_GEMMA.name, sites=3, latents=512, active=8, most_time=MOST),
    Case(model=TINY_GEMMA.name, sites=1, latents=512, active=8, preset=SPLICED),
    Case(model=TINY_LLAMA.name, sites=2, latents=256, active=8),
)
