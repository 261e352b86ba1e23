"""The result as a Markdown page: verification, table, goals reached or not, and how to read them."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.peers.goals import extra_bytes, goals, speed_ratios
from benchmarks.peers.meter import Measures
from benchmarks.peers.turns import Result
from benchmarks.peers.variants import VARIANTS

HEADS = (
    "variant",
    "tokens/s: median (range)",
    "the engine is faster by: median (range)",
    "CPU seconds per 1,000 tokens",
    "memory above model and SAE, MB",
    "on disk, bytes per pair",
)
NOTES = """\
How to read it. Every variant is a process of its own and runs the same documents through the same float32 model and
SAE; the objective is the sum of log p of all tokens, the reconstruction replaces the hidden state at every position
but the masked ones (special tokens, a first position without BOS, attention sinks), the error term is dropped: the
engine's preset `gradsae`, and what a hook that returns the decoded latents does by itself. Seconds run from model and
SAE being loaded to the results being on disk. All variants take turns, every second turn in the opposite order; the
ratio is of one turn's rates, then the median over turns. Memory: highest resident memory of the work less that after
loading.

As users write them: parameters trainable, documents in corpus order, {documents_per_batch} to a batch, padded to the
longest ({usual_padding:.0%} of the positions are padding), attention mask. Tuned: model and SAE frozen, documents of
similar length together within {tokens_per_batch} padded tokens ({tuned_padding:.0%} padding), no mask, the product
taken at active latents alone. SAELens: its object, loaded by it, spliced by a hook on the transformers model; as
users write it the latents keep their gradient inside a graph that goes on through the encoder. Both store COO triples
with torch (24 bytes a pair).

The authors' procedure: one prompt at a time, {decode_steps} steps of greedy decoding without a KV cache, the SAE
spliced in and a graph at each, full sort, JSON; its rate is of prompt tokens, over {num_authors} of the documents. It
is not the authors' code: it is written from their description, with this objective, taken at the first step. The
seconds of that step alone are told below the table.

delphi: activations alone, no gradients, the whole body of the model. Its positions are counted with padding, since it
packs its rows; it stores float16.

The engine: `extract` itself, default precision, its store with document sums and the latent-major copy; each document
is a segment of its own in a corpus this small. Its checks before a run are done once for a store and are told apart."""

_WORST = (
    "Worst: largest difference, relative to the largest number of its kind; of influences, in the documents whose "
    "active sets are the same."
)


def page(about: dict[str, Any], results: Sequence[Result]) -> str:
    """All of it."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"# Whole-method timing against peers, {about['date']}",
        "",
        f"{about['device']}, {about['threads']} threads; {versions}. {about['num_documents']} documents of "
        f"{about['shortest']} to {about['longest']} tokens, {about['num_tokens']:,} in all; {about['turns']} turns. "
        f"Load average of the last minute {about['load_before']:.2f} before and {about['load_after']:.2f} after (the "
        "run itself is part of it).",
    ]
    if about["left_out"]:
        lines += ["", f"Left out: {'; '.join(about['left_out'])}."]
    for result in results:
        lines += ["", f"## C = {result.num_latents:,}, L0 = {result.l0:.1f}", ""]
        if result.measures:
            lines += [*_table(result), *_parts(result), "", *_goals(result), ""]
        lines += _agreements(result)
    return "\n".join([*lines, "", NOTES.format(**about)]) + "\n"


def to_json(about: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """The same as data."""
    return {**about, "results": [asdict(result) for result in results]}


def _table(result: Result) -> list[str]:
    lines = [f"| {' | '.join(HEADS)} |", "|" + len(HEADS) * "---|"]
    for variant in VARIANTS:
        runs = result.measures.get(variant.name)
        if runs:
            cells = (
                f"**{variant.title}**" if variant.name == "engine" else variant.title,
                _spread([run.rate for run in runs], ".0f" if runs[0].rate > 30 else ".1f"),
                _spread(speed_ratios(result, variant.name), ".2f"),
                f"{_median(runs, lambda run: 1e3 * run.cpu_seconds / run.num_tokens):.1f}",
                _megabytes(extra_bytes(runs)),
                f"{_median(runs, lambda run: run.stored_bytes / max(1, run.num_pairs)):.1f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parts(result: Result) -> list[str]:
    """What is told apart: parts of the work, and the engine's checks."""
    found = []
    for name, runs in result.measures.items():
        for part in runs[0].parts:
            seconds = statistics.median(run.parts[part] for run in runs)
            text = f"{name}: {part}, {seconds:.2f} s"
            if runs[0].checks_peak_bytes and runs[0].loaded_bytes:
                text += f", {_megabytes(runs[0].checks_peak_bytes - runs[0].loaded_bytes)} MB above model and SAE"
            else:
                text += f" ({runs[0].num_tokens / seconds:.0f} tokens/s)"
            found.append(text)
    return ["", "; ".join(found) + "."] if found else []


def _goals(result: Result) -> list[str]:
    lines = ["| goal | wanted | found | reached |", "|---|---|---|---|"]
    for goal in goals(result):
        sign = "≤" if goal.at_most else "≥"
        verdict = "yes" if goal.is_reached else "**no**"
        lines.append(f"| {goal.text} | {sign} {goal.wanted:g} | {goal.found:.3g} | {verdict} |")
    return lines


def _agreements(result: Result) -> list[str]:
    lines = [f"Compared with {result.reference}, on all tokens that count, before anything was timed:", ""]
    lines.append(
        "| variant | pairs | in one active set only | worst activation | worst influence |\n|---|---|---|---|---|"
    )
    for name, found in result.agreements.items():
        influence = "none" if found.worst_influence is None else f"{found.worst_influence:.1e}"
        edge = f"{found.num_at_edge} of {found.num_switched} documents" if found.num_at_edge else "none"
        lines.append(f"| {name} | {found.num_pairs:,} | {edge} | {found.worst_activation:.1e} | {influence} |")
    return [*lines, "", _WORST]


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (format(f(values), form) for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def _median(runs: Sequence[Measures], of: Callable[[Measures], float]) -> float:
    return statistics.median(of(run) for run in runs)


def _megabytes(count: float | None) -> str:
    return "not available" if count is None else f"{count / 1e6:,.0f}"
