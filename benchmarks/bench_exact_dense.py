"""What measuring dense latents exactly buys, and what it costs: rank agreement with exact ablation, by threshold.

A sample of (document, latent) pairs is ablated exactly: uniform over all pairs in which the latent fires, and beside it
the stratified sample that `gradsae certify` draws. For each threshold, latents that fire on more of the tokens count as
dense; the hybrid takes the exact effect for those and the first-order score for the others, and is compared with the
exact effects of the whole sample. A threshold near 0 agrees perfectly because everything is measured: read the
agreement against the cost.

    python benchmarks/bench_exact_dense.py --model MODEL --sae SAE --corpus CORPUS --out FOLDER

writes `<date>-exact-dense.json`, `.md` and `.svg`; under pytest the shipped demo model is used.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.certify.agreement import sign_agreement, spearman
from gradsae_fast.certify.reopen import reopen
from gradsae_fast.certify.sample import Sampling, draw_documents, draw_samples
from gradsae_fast.config import config_from_tables
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.demo import ASSETS
from gradsae_fast.exact import exact_dense
from gradsae_fast.exact.effects import DocumentRemoval, Place, check_values, document_effects
from gradsae_fast.extract import extract
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Array, counted_tokens
from gradsae_fast.store import ScoreStore, StoredSegment, open_scores

SHARES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.0)
RESAMPLES = 1000
Pair = tuple[int, int, int]  # segment, document in it, latent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Every pair of a document and a latent that fires on its counted tokens; all columns of equal length."""

    segment: Array
    slot: Array
    latent: Array
    predicted: Array  # stored sum of influence
    density: Array  # share of the corpus's counted tokens on which the latent fires

    def keys(self) -> list[Pair]:
        return list(zip(self.segment.tolist(), self.slot.tolist(), self.latent.tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The hybrid at one threshold; None: first order alone."""

    share: float | None
    dense_latents: int
    removals: int  # pairs that the pass measures, of all
    relative_seconds: float  # of the pass, as a multiple of the extraction's
    uniform: float | None  # Spearman
    uniform_low: float  # 95 % interval over resamples of the pairs
    uniform_high: float
    uniform_sign: float | None
    stratified: float | None
    stratified_sign: float | None


def all_pairs(store: ScoreStore) -> Pairs:
    """The pairs of a store of one site and objective, in corpus order."""
    (site,), (objective,) = store.sites, store.objectives
    counted = sum(int(segment.counted_tokens().sum()) for segment in store.segments)
    stats = [segment.site(site).latent_stats(["count"]).columns["count"] for segment in store.segments]
    density_C = np.sum(stats, axis=0) / counted
    parts = []
    for segment in store.segments:
        sums = segment.site(site).document_sums([f"sum_influence/{objective}"])
        slot = np.repeat(np.arange(segment.num_documents), np.diff(sums.indptr))
        index = np.full(len(slot), segment.index)
        parts.append((index, slot, sums.indices, sums.columns[f"sum_influence/{objective}"], density_C[sums.indices]))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    names = [field.name for field in dataclasses.fields(Pairs)]
    return Pairs(**dict(zip(names, columns, strict=True)))


def stratified_pairs(store: ScoreStore, seed: int) -> list[Pair]:
    """The documents' latents that a certificate of six documents looks at."""
    sampling = Sampling(seed=seed)
    samples = draw_samples(store, draw_documents(store, sampling), sampling)
    return [
        (sample.document.segment.index, sample.document.slot, sample.latent)
        for sample in samples
        if sample.scores == "documents" and not sample.extra
    ]


def measure(prepared: Prepared, store: ScoreStore, wanted: set[Pair], tokens_per_pass: int) -> dict[Pair, float]:
    """The exact effect of each pair; SystemExit through ScoreError where this run is not the one that was scored."""
    exact: dict[Pair, float] = {}
    (site,), (objective,) = store.sites, store.objectives
    stored = {segment.index: segment for segment in store.segments}
    skip = frozenset(stored) - {segment for segment, _, _ in wanted}
    for segment, documents in read_segments(
        prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, skip
    ):
        of_slot: dict[int, list[int]] = defaultdict(list)
        for index, slot, latent in sorted(wanted):
            if index == segment.index:
                of_slot[slot].append(latent)
        removals = {
            Place(slot, site, objective): [removal(store, stored[segment.index], slot, latent) for latent in latents]
            for slot, latents in of_slot.items()
        }
        effects = document_effects(prepared, documents, removals, tokens_per_pass=tokens_per_pass)
        check_values(prepared, stored[segment.index], effects)
        for place, found in effects.items():
            exact |= {
                (segment.index, place.slot, r.latent): drop
                for r, drop in zip(removals[place], found.drop_K.tolist(), strict=True)
            }
        print(f"segment {segment.index}: {len(exact)} of {len(wanted)} pairs", flush=True)
    return exact


def removal(store: ScoreStore, segment: StoredSegment, slot: int, latent: int) -> DocumentRemoval:
    """A latent at every counted token of a document on which it fires."""
    token_Z = segment.site(store.sites[0]).by_latent(latent)[0]
    counted_N = counted_tokens(segment.token_column("mask"), store.aggregates_include_special)
    token_Z = token_Z[counted_N[token_Z] & (segment.token_column("document")[token_Z] == slot)]
    return DocumentRemoval(latent=latent, position_P=segment.token_column("position")[token_Z].astype(np.int64))


def agreement(pairs: Pairs, exact: dict[Pair, float], chosen: list[int], share: float | None) -> tuple[Array, Array]:
    """The hybrid's scores of some pairs, and their exact effects."""
    keys = pairs.keys()
    exact_N = np.array([exact[keys[index]] for index in chosen])
    dense_N = pairs.density[chosen] > (1.0 if share is None else share)
    return np.where(dense_N, exact_N, pairs.predicted[chosen]), exact_N


def interval(x_N: Array, y_N: Array) -> tuple[float, float]:
    """The central 95 % of Spearman over resamples of the pairs."""
    generator = np.random.default_rng(0)
    draws = (generator.integers(0, len(x_N), len(x_N)) for _ in range(RESAMPLES))
    low, high = np.quantile([spearman(x_N[draw], y_N[draw]) or 0.0 for draw in draws], [0.025, 0.975])
    return float(low), float(high)


def sweep(
    pairs: Pairs, exact: dict[Pair, float], uniform: list[int], stratified: list[int], relative: float
) -> list[Point]:
    """One point for each threshold; `relative` is the cost of one removal in extractions."""
    points = []
    for share in (None, *SHARES):
        dense = pairs.density > (1.0 if share is None else share)
        x_N, y_N = agreement(pairs, exact, uniform, share)
        stratified_x, stratified_y = agreement(pairs, exact, stratified, share)
        low, high = interval(x_N, y_N)
        points.append(
            Point(
                share=share,
                dense_latents=len(np.unique(pairs.latent[dense])),
                removals=int(dense.sum()),
                relative_seconds=float(dense.sum() * relative),
                uniform=spearman(x_N, y_N),
                uniform_low=low,
                uniform_high=high,
                uniform_sign=sign_agreement(x_N, y_N),
                stratified=spearman(stratified_x, stratified_y),
                stratified_sign=sign_agreement(stratified_x, stratified_y),
            )
        )
    return points


def run(tables: dict[str, Any], *, num_pairs: int, share: float, seed: int, tokens_per_pass: int) -> dict[str, Any]:
    """Extract, measure the sample and the pass at `share`, check one against the other; what was found."""
    report = extract(config_from_tables(tables), on_message=lambda text: print(text, flush=True))
    store = open_scores(report.store)
    prepared, _ = reopen(store)
    pairs = all_pairs(store)
    uniform = np.sort(np.random.default_rng(seed).permutation(len(pairs.slot))[:num_pairs]).tolist()
    place_of = {key: index for index, key in enumerate(pairs.keys())}
    stratified = [place_of[key] for key in stratified_pairs(store, seed)]
    dense = exact_dense(
        prepared, share=share, tokens_per_pass=tokens_per_pass, tell=lambda text: print(text, flush=True)
    )
    keys = pairs.keys()
    wanted = {keys[index] for index in [*uniform, *stratified]}
    started = time.perf_counter()
    exact = measure(prepared, store, wanted, tokens_per_pass)
    seconds = time.perf_counter() - started
    verify_pass(store, exact)
    points = sweep(pairs, exact, uniform, stratified, seconds / len(wanted) / report.seconds)
    return {
        "setting": {"model": Path(tables["model"]["path"]).name, "sae": Path(tables["sae"]["path"]).name, "seed": seed}
        | {"documents": store.num_documents, "tokens": store.num_tokens, "pairs": len(pairs.slot)},
        "extraction_seconds": report.seconds,
        "seconds_per_removal": seconds / len(wanted),
        "pass": dataclasses.asdict(dense),
        "uniform_pairs": len(uniform),
        "stratified_pairs": len(stratified),
        "points": [dataclasses.asdict(point) for point in points],
        "samples": _columns(pairs, exact, uniform, stratified),
    }


def _columns(pairs: Pairs, exact: dict[Pair, float], uniform: list[int], stratified: list[int]) -> dict[str, list[Any]]:
    """The pairs that were measured, column by column, to six digits."""
    chosen, keys = sorted({*uniform, *stratified}), pairs.keys()
    segment, slot, latent = zip(*(keys[index] for index in chosen), strict=True)
    return {
        "segment": list(segment),
        "slot": list(slot),
        "latent": list(latent),
        "density": [float(f"{value:.6g}") for value in pairs.density[chosen].tolist()],
        "predicted": [float(f"{value:.6g}") for value in pairs.predicted[chosen].tolist()],
        "exact": [float(f"{exact[key]:.6g}") for key in zip(segment, slot, latent, strict=True)],
        "uniform": np.isin(chosen, uniform).tolist(),
        "stratified": np.isin(chosen, stratified).tolist(),
    }


def verify_pass(store: ScoreStore, exact: dict[Pair, float]) -> None:
    """The effects that the pass kept are those of the sample. SystemExit where they are not."""
    kept = store.exact_dense()
    assert kept is not None
    (site,), (objective,) = store.sites, store.objectives
    dense = set(kept.latents[site].tolist())
    for (segment, slot, latent), effect in exact.items():
        if latent in dense:
            column = int(np.searchsorted(kept.latents_of(segment, site), latent))
            stored = float(kept.drops(segment, site, objective)[slot, column])
            if abs(stored - effect) > 1e-3 * max(1.0, abs(effect)):
                raise SystemExit(f"latent {latent} of document {segment}:{slot}: {stored} kept, {effect} measured")


def to_markdown(found: dict[str, Any], date: str) -> str:
    """The page beside the numbers."""
    setting, dense = found["setting"], found["pass"]
    lines = [
        f"# First order, and exact effects for dense latents: {date}",
        "",
        f"{setting['model']}, SAE {setting['sae']}: {setting['documents']} documents, {setting['tokens']} tokens, "
        f"{setting['pairs']} pairs of a document and a latent that fires in it. Spearman and equal signs of the score",
        f"against exact ablation, over {found['uniform_pairs']} pairs drawn uniformly and over the "
        f"{found['stratified_pairs']} that a certificate draws (strata of the score, extremes always in).",
        "Latents that fire on more than the threshold of the tokens have their exact effect, the others their score. "
        f"Cost: seconds of the pass over those of the extraction ({found['extraction_seconds']:.1f} s),",
        f"at {found['seconds_per_removal']:.3f} s a removal.",
        "",
        "| dense: more than | latents | removals | cost | uniform [95 %] | same sign | stratified | same sign |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in found["points"]:
        name = "(first order)" if point["share"] is None else f"{point['share']:.1%}"
        lines.append(
            f"| {name} | {point['dense_latents']} | {point['removals']} | {point['relative_seconds']:.2f} | "
            f"{point['uniform']:.3f} [{point['uniform_low']:.3f}, {point['uniform_high']:.3f}] | "
            f"{point['uniform_sign']:.3f} | {point['stratified']:.3f} | {point['stratified_sign']:.3f} |"
        )
    lines += [
        "",
        f"The pass itself at {dense['share']:.0%}: {dense['num_removals']} removals in {dense['seconds']:.1f} s, "
        f"largest deviation of an objective {dense['value_deviation']:.1e}; its effects equal those of the sample.",
        "The other costs are removals times seconds a removal, timed once, beside whatever else the machine did.",
        "At 0 % all is measured, and agreement is perfect by construction.",
        "",
    ]
    return "\n".join(lines)


def to_svg(points: list[dict[str, Any]]) -> str:
    """Agreement over cost, one line for each sample."""
    left, top, width, height = 60, 20, 520, 300
    known = [point for point in points if point["uniform"] is not None and point["stratified"] is not None]
    cost = [np.log10(1 + 10 * point["relative_seconds"]) for point in known]
    floor = np.floor(10 * min(min(point["uniform"], point["stratified"]) for point in known)) / 10

    def x(value: float) -> float:
        return left + width * value / (max(cost) or 1.0)

    def y(value: float) -> float:
        return top + height * (1 - value) / (1 - floor or 1.0)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 100}" height="{height + 90}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>',
    ]
    for value in np.arange(floor, 1.001, 0.05):
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for before, point, at in zip([None, *known], known, cost, strict=False):
        if before is not None and before["removals"] == point["removals"]:
            continue  # the same latents at another threshold
        name = "none" if point["share"] is None else f"{point['share']:g}"
        parts.append(
            f'<text x="{x(at):.1f}" y="{top + height + 12}" text-anchor="end" '
            f'transform="rotate(-60 {x(at):.1f} {top + height + 12})">{name}: {point["relative_seconds"]:.1f}×</text>'
        )
    for row, (name, colour) in enumerate((("uniform", "#0b6e99"), ("stratified", "#c2571a"))):
        spots = [(x(at), y(point[name])) for point, at in zip(known, cost, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in spots]
        parts.append(
            f'<text x="{left + width - 8}" y="{top + height - 30 + 15 * row}" text-anchor="end" fill="{colour}">'
            f"Spearman, {name} sample</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def bench_exact_dense(tmp_path: Path) -> None:
    """The sweep on the demo model: the pass agrees with the sample, and the ends are what they must be."""
    tables = {
        "model": {"path": str(ASSETS / "model")},
        "sae": {"path": str(ASSETS / "sae")},
        "corpus": {"path": str(ASSETS / "corpus.jsonl"), "context_length": 32, "overlap": 4, "max_documents": 2},
        "store": {"path": str(tmp_path / "scores")},
        "run": {"threads": 1, "force": True},
    }
    found = run(tables, num_pairs=20, share=0.3, seed=0, tokens_per_pass=2048)
    first, *_, last = found["points"]
    assert first["removals"] == 0
    assert last["removals"] == found["setting"]["pairs"]
    assert last["uniform"] == pytest.approx(1.0)
    assert "| (first order) | 0 | 0 |" in to_markdown(found, "today")
    assert to_svg(found["points"]).startswith("<svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sae", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--overlap", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=1000, help="size of the uniform sample")
    parser.add_argument("--share", type=float, default=0.2, help="threshold of the pass that is timed")
    parser.add_argument("--tokens-per-pass", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "model": {"path": words.model},
            "sae": {"path": words.sae},
            "corpus": {"path": words.corpus, "context_length": words.context_length, "overlap": words.overlap},
            "store": {"path": str(Path(folder) / "scores.gradsae")},
            "run": {"threads": words.threads},
        }
        found = run(
            tables,
            num_pairs=words.pairs,
            share=words.share,
            seed=words.seed,
            tokens_per_pass=words.tokens_per_pass,
        )
    date = time.strftime("%Y-%m-%d")
    page = to_markdown(found, date)
    words.out.mkdir(parents=True, exist_ok=True)
    stem = words.out / f"{date}-exact-dense"
    stem.with_suffix(".json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(page, encoding="utf-8")
    stem.with_suffix(".svg").write_text(to_svg(found["points"]), encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
