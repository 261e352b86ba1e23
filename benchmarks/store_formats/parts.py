"""Where the bytes of a store go, per non-zero, and how long it takes to write and to read."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.store_formats.corpus import Scores, assert_same, read_scores, read_segments, write_store
from benchmarks.store_formats.formats import FORMATS, Format, check, size
from gradsae_fast.records import SparseScores
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.format.codecs import PROFILES

PARTS = ("ids", "row pointers", "activations", "projections", "latent-major", "sums", "tokens and texts", "records")
_TOKEN_MAJOR = {"indices": "ids", "indptr": "row pointers", "activation": "activations", "projection": "projections"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One way to keep the scores at one precision."""

    name: str
    precision_bits: int
    bytes_per_nonzero: float
    write_seconds: float
    read_seconds: float
    parts: Mapping[str, float]  # bytes per non-zero of each of PARTS; empty for formats that have none


def bytes_by_part(store: ScoreStore) -> dict[str, int]:
    """Bytes of each of PARTS in all segments, metadata of their arrays included."""
    total: dict[str, int] = defaultdict(int)
    for segment in store.segments:
        for found in segment.commit["objects"]:
            total[_part(found["key"].split("/"))] += found["length"]
    total["records"] += size(Path(str(store.path))) - sum(total.values())
    return {name: total[name] for name in PARTS}


def _part(key: list[str]) -> str:
    """The part that an object belongs to; `key` is sites/<site>/<group>/<array>/... or <table>/..."""
    if key[0] != "sites":
        return "records" if len(key) == 1 else "tokens and texts"
    if len(key) < 5:  # a group's own metadata
        return "records"
    if key[2] == "by_token":
        return _TOKEN_MAJOR[key[3]]
    return "latent-major" if key[2] == "by_latent" else "sums"


def measure(store: ScoreStore, precision_bits: int, rounds: int, folder: Path) -> list[Measured]:
    """Check every format and both profiles of whole stores at one precision, then time them in turns; medians."""
    scores = read_scores(store).rounded(precision_bits)
    tasks = {form.name: _format_task(form, scores) for form in FORMATS}
    tasks |= {f"ours, {profile}, whole store": _store_task(store, precision_bits, profile) for profile in PROFILES}
    seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    sizes, parts = {}, {}
    for turn in range(rounds + 1):
        for name, (write, read, verify) in tasks.items():
            with tempfile.TemporaryDirectory(dir=folder) as place:
                spent = _seconds(write, Path(place)), _seconds(read, Path(place))
                if turn:
                    seconds[name].append(spent)
                    continue
                verify(Path(place))
                sizes[name], parts[name] = size(Path(place)), _parts(Path(place))
    return [
        Measured(
            name=name,
            precision_bits=precision_bits,
            bytes_per_nonzero=sizes[name] / scores.num_nonzeros,
            write_seconds=statistics.median(write for write, _ in seconds[name]),
            read_seconds=statistics.median(read for _, read in seconds[name]),
            parts={part: count / scores.num_nonzeros for part, count in parts[name].items()},
        )
        for name in tasks
    ]


Task = tuple[Callable[[Path], Any], Callable[[Path], Any], Callable[[Path], None]]


def _format_task(form: Format, scores: Scores) -> Task:
    return lambda place: form.write(place, scores), form.read, lambda place: check(form, place, scores)


def _store_task(store: ScoreStore, precision_bits: int, profile: str) -> Task:
    segments = read_segments(store)
    expected = read_scores(store).rounded(precision_bits)

    def write(place: Path) -> None:
        write_store(place / "store", store, segments, precision_bits=precision_bits, profile=profile)

    def read(place: Path) -> list[SparseScores]:
        return [segment.site(store.sites[0]).by_token() for segment in open_scores(place / "store").segments]

    def verify(place: Path) -> None:
        assert_same(read_scores(open_scores(place / "store")), expected)

    return write, read, verify


def _parts(place: Path) -> dict[str, int]:
    return bytes_by_part(open_scores(place / "store")) if (place / "store").exists() else {}


def _seconds(work: Callable[[Path], Any], place: Path) -> float:
    started = time.perf_counter()
    work(place)
    return time.perf_counter() - started
