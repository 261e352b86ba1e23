"""Variants in turns: first every one of them once for its numbers, then, where these agree, for its time."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.jumprelu import read_folder
from benchmarks.peers.meter import Measures
from benchmarks.peers.pairs import Pairs
from benchmarks.peers.variants import ENGINE, Variant
from benchmarks.peers.verify import Agreement, WrongNumbers, verify
from benchmarks.peers.workload import Workload

ROOT = Path(__file__).parents[2]
Launch = Callable[[Variant, list[str]], None]
"""(variant, arguments of its module) -> nothing; RuntimeError where the process fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One workload, all variants."""

    num_latents: int
    l0: float
    agreements: Mapping[str, Agreement]  # by variant; the reference has none
    reference: str
    measures: Mapping[str, Sequence[Measures]]  # by variant, in the order of turns


def launcher(interpreters: Mapping[str, str]) -> Launch:
    """Start variants as processes, each with its environment's interpreter; no network."""

    def launch(variant: Variant, arguments: list[str]) -> None:
        python = interpreters.get(variant.environment, sys.executable)
        command = [python, "-m", f"benchmarks.peers.{variant.module}", *arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-5:]) or "no output"
            raise RuntimeError(f"{variant.name} ended with status {done.returncode}: {last}")

    return launch


def run_once(launch: Launch, variant: Variant, workload: Workload, out: Path, *, exact: bool) -> Measures:
    """One process of one variant; with `exact` its numbers lie in the folder `out` afterwards."""
    flags = ["--tuned"] * variant.tuned + ["--exact"] * exact
    launch(variant, [str(workload.folder), str(out), *flags])
    return Measures.load(out)


def compare(
    launch: Launch, variants: Sequence[Variant], workload: Workload, tell: Callable[[str], None]
) -> tuple[dict[str, Agreement], float]:
    """Numbers of all variants against those of the first; WrongNumbers. Also the reference's L0."""
    threshold_C = read_folder(Path(workload.settings.sae))[1]["threshold"].float().numpy()
    agreements: dict[str, Agreement] = {}
    expected: Pairs | None = None
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            tell(_costs(variant.name, run_once(launch, variant, workload, Path(folder), exact=True)))
            found = Pairs.load(Path(folder) / "numbers.npz").at(workload.spliced_N)
        if expected is None:
            expected = found
            tell(f"reference: {variant.name}, {len(found.token_Z):,} pairs")
            continue
        covered = _covered(variant, expected, workload)
        agreements[variant.name] = verify(variant.name, found, covered, threshold_C, workload.document_N)
        tell(f"{variant.name} agrees: {agreements[variant.name]}")
    assert expected is not None
    return agreements, len(expected.token_Z) / int(workload.spliced_N.sum())


def _covered(variant: Variant, expected: Pairs, workload: Workload) -> Pairs:
    """The pairs of the documents that a variant scores."""
    if variant.covers_all:
        return expected
    covered_N = workload.spliced_N & False
    covered_N[workload.tokens_of(workload.settings.authors_documents)] = True
    return expected.at(covered_N)


def take_turns(
    launch: Launch, variants: Sequence[Variant], workload: Workload, turns: int, tell: Callable[[str], None]
) -> dict[str, list[Measures]]:
    """Every variant once a turn, every second turn in the opposite order."""
    measures: dict[str, list[Measures]] = {variant.name: [] for variant in variants}
    for turn in range(turns):
        for variant in variants[:: -1 if turn % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                found = run_once(launch, variant, workload, Path(folder), exact=False)
            measures[variant.name].append(found)
            tell(_costs(f"turn {turn + 1}, {variant.name}", found))
    return measures


def _costs(name: str, found: Measures) -> str:
    """One run in a line."""
    extra = "" if found.extra_bytes is None else f", {found.extra_bytes / 1e6:.0f} MB above model and SAE"
    return f"{name}: {found.seconds:.1f} s, {found.rate:.0f} tokens/s, {found.cpu_seconds:.1f} CPU s{extra}"


def run(
    launch: Launch, variants: Sequence[Variant], workload: Workload, turns: int, tell: Callable[[str], None]
) -> Result:
    """Verify, then time; without turns verify alone. The first variant is the reference.

    Raises WrongNumbers where a variant disagrees, and nothing is timed; RuntimeError where one fails.
    """
    if ENGINE not in variants or not (variants[0].has_influences and variants[0].covers_all):
        raise WrongNumbers("nothing to compare with: name a variant of dense autograd first, and the engine")
    agreements, l0 = compare(launch, variants, workload, tell)
    measures = take_turns(launch, variants, workload, turns, tell) if turns else {}
    return Result(
        num_latents=workload.settings.num_latents,
        l0=l0,
        agreements=agreements,
        reference=variants[0].name,
        measures=measures,
    )
