"""The store against other formats, on real scores: bytes per non-zero, seconds, and what rounding does to rankings.

    gradsae extract ... --precision-bits 23 --out exact.gradsae
    python -m benchmarks.store_formats exact.gradsae --out benchmarks/results

writes `<date>-store-formats.json` and `.md`. The store has one site and one objective; with 23 bits it is exact, and
with fewer its own values are what the others are held against. Needs scipy (extra `test`).
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.store_formats.corpus import Scores, read_scores, read_segments, write_store
from benchmarks.store_formats.page import page
from benchmarks.store_formats.parts import measure
from benchmarks.store_formats.ranking_error import compare, summarise
from gradsae_fast.method import PRECISION_BITS
from gradsae_fast.store import ScoreStore, open_scores

PACKAGES = ("numpy", "numcodecs", "pyarrow", "safetensors", "scipy")
_EXACT = 23
_HALF_SMALLEST_NORMAL = 2.0**-14


def run(path: Path, *, rounds: int, precisions: tuple[int, ...] = PRECISION_BITS) -> dict[str, Any]:
    """Measure everything on one store."""
    store = open_scores(path)
    scores = read_scores(store)
    with tempfile.TemporaryDirectory() as folder:
        formats = [asdict(row) for bits in precisions for row in measure(store, bits, rounds, Path(folder))]
        ranking = _ranking_errors(store, precisions, Path(folder))
    return {
        "setting": _setting(store, scores, rounds),
        "formats": formats,
        "half": _half_losses(scores),
        "ranking": ranking,
    }


def _ranking_errors(store: ScoreStore, precisions: tuple[int, ...], folder: Path) -> list[dict[str, Any]]:
    stores, segments = {}, read_segments(store)
    for bits in {*precisions, _EXACT}:
        path = folder / f"{bits}-bits.gradsae"
        write_store(path, store, segments, precision_bits=bits, profile="compact")
        stores[bits] = open_scores(path)
    found = []
    for bits in precisions:
        if bits != _EXACT:
            corpus, *documents = compare(stores[_EXACT], stores[bits])
            found.append({"corpus": asdict(corpus), "documents": asdict(summarise(documents, bits))})
    return found


def _half_losses(scores: Scores) -> dict[str, float]:
    """Which share of the projections float16 makes zero or subnormal."""
    size_Z = np.abs(scores.projection)
    zero = scores.projection.astype(np.float16) == 0
    subnormal = ~zero & (size_Z < _HALF_SMALLEST_NORMAL)
    return {"zero": float(zero.mean()), "subnormal": float(subnormal.mean())}


def _setting(store: ScoreStore, scores: Scores, rounds: int) -> dict[str, Any]:
    config = store.run.get("config", {})
    names = [config.get("model", {}).get("path"), *(sae.get("path") for sae in config.get("saes", []))]
    return {
        "source": " with ".join(Path(name).name for name in names if name) or "scores without a stated source",
        "documents": store.num_documents,
        "tokens": store.num_tokens,
        "nonzeros": scores.num_nonzeros,
        "latents": scores.num_latents,
        "l0": scores.num_nonzeros / store.num_tokens,
        "segments": len(store.segments),
        "stored_bits": store.precision_bits,
        "rounds": rounds,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def main() -> None:
    """Measure the given store and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found, date = run(options.store, rounds=options.rounds), time.strftime("%Y-%m-%d")
    text = page(found, date)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{date}-store-formats"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
