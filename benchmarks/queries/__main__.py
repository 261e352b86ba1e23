"""What questions to a large store cost: with and without its index, cold and warm, beside DuckDB and polars.

    python -m benchmarks.queries --out benchmarks/results --work FOLDER
    python -m benchmarks.queries --out benchmarks/results --work FOLDER --non-zeros 1000000
    python -m benchmarks.queries --out benchmarks/results --work FOLDER --store STORE --a party=R --b party=D

from the root of the repository writes `<date>-queries.json` and `.md`. The synthetic store and the Parquet tables stay
in FOLDER, and are not made again; a given store is copied there first, as it is given an index.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.queries.asked import Cost, ask_apart
from benchmarks.queries.building import Built, build_apart
from benchmarks.queries.corpus import write_store
from benchmarks.queries.databases import in_duckdb, in_polars
from benchmarks.queries.long_table import BY_LATENT, BY_TOKEN, export
from benchmarks.queries.oracle import assert_same, ours
from benchmarks.queries.page import page
from benchmarks.queries.questions import GOALS, Subjects, find_subjects, questions
from gradsae_fast.store import open_scores

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Costs of one question: of rounds in processes of their own, and of databases by name and table."""

    question: str
    goal: float | None  # seconds
    costs: dict[str, list[Cost]]  # "index, cold" and so on
    databases: dict[str, float]  # median seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured of one store."""

    store: str
    non_zeros: int
    documents: int
    segments: int
    store_bytes: int
    built: Built
    lines: list[Line]


def measure(store: Path, tables: Path, subjects: tuple[str, str], rounds: int, tell: Tell) -> Found:
    """Index the store, check every answer against the databases, then time."""
    tell(f"index of {store}")
    built = build_apart(store)
    opened = open_scores(store)
    about = find_subjects(opened, *subjects)
    tell("Parquet tables")
    export(opened, tables, about)
    databases = _databases(tables, about)
    timed = {
        name: _verified(store, name, about, databases, rounds, tell) for name in questions(about) if name != "open"
    }
    lines = []
    for name in questions(about):
        tell(f"time: {name}")
        lines.append(
            Line(
                question=name,
                goal=GOALS.get(name),
                costs=_costs(store, name, about, rounds),
                databases=timed.get(name, {}),
            )
        )
    (site, *_) = opened.sites
    return Found(
        store=store.name,
        non_zeros=sum(segment.summary.facts["counts"]["nnz"][site] for segment in opened.segments),
        documents=opened.num_documents,
        segments=len(opened.segments),
        store_bytes=sum(path.stat().st_size for path in store.rglob("*") if path.is_file()),
        built=built,
        lines=lines,
    )


def _databases(tables: Path, about: Subjects) -> dict[str, dict[str, Callable[[], list[tuple[int, float]]]]]:
    engines = {"DuckDB": in_duckdb, "polars": in_polars}
    orders = {"by token": BY_TOKEN, "by latent": BY_LATENT}
    return {
        f"{engine}, {order}": ask(tables / file, about)
        for engine, ask in engines.items()
        for order, file in orders.items()
    }


def _verified(
    store: Path,
    name: str,
    about: Subjects,
    databases: dict[str, dict[str, Callable[[], list[tuple[int, float]]]]],
    rounds: int,
    tell: Tell,
) -> dict[str, float]:
    """Ask the databases, hold our answers to theirs, and return their median seconds."""
    tell(f"verify: {name}")
    seconds = {}
    for engine, asked in databases.items():
        spent = []
        for _ in range(rounds):
            begun = time.perf_counter()
            expected = asked[name]()
            spent.append(time.perf_counter() - begun)
        seconds[engine] = statistics.median(spent)
        for use_index in (True, False):
            assert_same(ours(open_scores(store, use_index=use_index), name, about), expected)
    return seconds


def _costs(store: Path, name: str, about: Subjects, rounds: int) -> dict[str, list[Cost]]:
    """Costs by variant, the variants in turn."""
    variants = {f"{i}, {c}": (i == "index", c == "cold") for i in ("index", "no index") for c in ("cold", "warm")}
    costs: dict[str, list[Cost]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, (use_index, cold) in variants.items():
            costs[variant].append(ask_apart(store, name, about, use_index=use_index, cold=cold))
    return costs


def machine() -> str:
    """Without this a time means nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numcodecs", "pyarrow", "duckdb", "polars"))
    processor = names[0] if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, required=True, help="folder for store and tables; they stay there")
    parser.add_argument("--non-zeros", type=int, default=10**8, help="of the synthetic store")
    parser.add_argument("--store", type=Path, help="ask this store instead, of one site and objective")
    parser.add_argument("--a", default="group=a", help="condition of the first group")
    parser.add_argument("--b", default="group=b", help="condition of the second group")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    name = options.store.name if options.store else f"{options.non_zeros:.0e}".replace("+", "")
    store = options.work / name / "scores.gradsae"
    store.parent.mkdir(parents=True, exist_ok=True)
    if options.store is None:
        write_store(store, options.non_zeros)
    elif not store.exists():
        shutil.copytree(options.store, store)
    found = measure(
        store,
        store.parent / "tables",
        (options.a, options.b),
        options.rounds,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    date, described = time.strftime("%Y-%m-%d"), machine()
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / (f"{date}-queries" if options.store is None else f"{date}-queries-{options.store.stem}")
    text = page(found, described, date)
    stem.with_suffix(".json").write_text(json.dumps({"machine": described, **asdict(found)}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
