"""How costs grow with documents, context, sites, width and store size: curves and fitted exponents.

    python -m benchmarks.growth --out benchmarks/results
    python -m benchmarks.growth --out benchmarks/results --only sites --model MODEL
    python -m benchmarks.growth --out benchmarks/results --up-to documents=10000 --up-to store=10000000

from the root of the repository writes `<date>-growth.json`, `.md` and `.svg` (with `--only`, the names of the series in
the file's name). Sizes, and what is measured at each, are in `series.py`.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from transformers.utils import logging

from benchmarks.growth import series as every
from benchmarks.growth.cost import in_child
from benchmarks.growth.page import page
from benchmarks.growth.plot import to_svg
from benchmarks.growth.series import SIZES, Bench, Series


def run(bench: Bench, sizes: dict[str, tuple[int, ...]], model: Path | None = None) -> list[Series]:
    """The series that `sizes` names, in the order of SIZES."""
    found = []
    for name in SIZES:
        if name in sizes:
            more = {"model": model} if name == "sites" else {}
            found.append(getattr(every, name)(bench, sizes[name], **more))
    return found


def chosen_sizes(only: str | None, limits: list[str]) -> dict[str, tuple[int, ...]]:
    """The sizes of the chosen series. SystemExit for an unknown name, or a limit that leaves fewer than two sizes."""
    names = only.split(",") if only else list(SIZES)
    largest = dict(limit.split("=", 1) for limit in limits)
    unknown = {*names, *largest} - set(SIZES)
    if unknown:
        raise SystemExit(f"unknown series {', '.join(sorted(unknown))}; expected {', '.join(SIZES)}")
    found = {name: tuple(s for s in SIZES[name] if s <= int(largest.get(name, sys.maxsize))) for name in names}
    for name, sizes in found.items():
        if len(sizes) < 2:
            raise SystemExit(
                f"--up-to {name}={largest[name]} leaves {len(sizes)} of {SIZES[name]}; expected two or more"
            )
    return found


def machine(threads: int) -> str:
    """Without this a time means nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "numpy", "numcodecs"))
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}, {versions}"
    )


def main() -> None:
    """Measure the chosen series and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--only", help=f"of {','.join(SIZES)}")
    parser.add_argument("--up-to", action="append", default=[], metavar="SERIES=SIZE", help="leave out larger sizes")
    parser.add_argument("--model", type=Path, help="of the series sites; default: a random one of 30 layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    sizes = chosen_sizes(options.only, options.up_to)
    logging.disable_progress_bar()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # for the children
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            folder=Path(folder),
            rounds=options.rounds,
            threads=options.threads,
            call=in_child,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
        found = run(bench, sizes, options.model)
    date, described = time.strftime("%Y-%m-%d"), machine(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "-".join([f"{date}-growth", *(options.only.split(",") if options.only else [])])
    written = {"machine": described, "series": [_numbers(one) for one in found]}
    text = page(found, described, date, stem.with_suffix(".svg").name)
    stem.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".svg").write_text(to_svg(found), encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _numbers(series: Series) -> dict[str, object]:
    """The series with the exponents of its curves, NaN as null."""
    fits = [
        {name: value if value == value else None for name, value in (("whole", one.whole), ("upper", one.upper))}
        | {"verdict": one.verdict}
        for one in series.curves
    ]
    numbers = asdict(series)
    return numbers | {"curves": [curve | fit for curve, fit in zip(numbers["curves"], fits, strict=True)]}


if __name__ == "__main__":
    main()
