"""What the engine is held to against its peers, and whether it got there."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.meter import Measures
from benchmarks.peers.turns import Result
from benchmarks.peers.variants import ENGINE

WIDE = 32768  # latents from which the goals of the wide SAE hold
MEMORY_SHARE = 0.1  # of the peer's memory above model and SAE, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One sentence with two numbers."""

    text: str
    wanted: float
    found: float
    at_most: bool = False

    @property
    def is_reached(self) -> bool:
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def speed_ratios(result: Result, name: str) -> list[float]:
    """How many times as many tokens a second the engine scores, turn by turn."""
    pairs = zip(result.measures[name], result.measures[ENGINE.name], strict=True)
    return [engine.rate / peer.rate for peer, engine in pairs]


def extra_bytes(runs: Sequence[Measures]) -> float | None:
    """Peak memory above model and SAE, median; None where the system does not tell."""
    found = [run.extra_bytes for run in runs if run.extra_bytes is not None]
    return statistics.median(found) if found else None


def goals(result: Result) -> list[Goal]:
    """Those that this result can speak about."""
    if ENGINE.name not in result.measures:
        return []
    wide = result.num_latents >= WIDE
    usual, tuned = (3.0, 1.3) if wide else (2.0, 1.0)
    wanted = {"plain-usual": usual, "saelens-usual": usual, "plain-tuned": tuned, "saelens-tuned": tuned}
    found = [
        Goal(text=f"speed against {name}", wanted=wanted[name], found=statistics.median(speed_ratios(result, name)))
        for name in wanted
        if name in result.measures
    ]
    if "authors" in result.measures:
        ratio = statistics.median(speed_ratios(result, "authors"))
        found.append(Goal(text="speed against authors", wanted=20.0, found=ratio))
    engine = extra_bytes(result.measures[ENGINE.name])
    for name in ("plain-usual", "plain-tuned"):
        peer = extra_bytes(result.measures.get(name, ()))
        if wide and engine is not None and peer:
            text = f"memory above model and SAE, as a share of {name}'s"
            found.append(Goal(text=text, wanted=MEMORY_SHARE, found=engine / peer, at_most=True))
    return found
