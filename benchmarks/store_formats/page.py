"""The page beside the numbers."""

import math
from typing import Any

from benchmarks.store_formats.parts import PARTS

GOALS = {7: 3.9, 10: 4.7}  # bytes per non-zero, token-major
GOAL_ID_BITS = 10
GOAL_LATENTS, GOAL_L0 = 16_384, 64
TOKEN_MAJOR = PARTS[:4]


def page(found: dict[str, Any], date: str) -> str:
    """What was measured, as Markdown; `found` is the JSON beside it."""
    lines = [f"# The store against other formats: {date}", "", *_setting(found), "", *_parts(found), ""]
    lines += [*_goals(found), "", *_formats(found), "", *_ranking(found), ""]
    return "\n".join(lines)


def _setting(found: dict[str, Any]) -> list[str]:
    s = found["setting"]
    return [
        f"{s['source']}: {s['documents']} documents, {s['tokens']} tokens, {s['nonzeros']} non-zeros of "
        f"{s['latents']} latents (L0 {s['l0']:.1f}), {s['segments']} segments, kept with {s['stored_bits']} bits.",
        f"Machine: {s['machine']}. Every format was read back and held to what was written, value by value, before",
        f"it was timed; then all took turns, {s['rounds']} rounds, medians. The page cache was warm.",
    ]


def _parts(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Bytes per non-zero of the store",
        "",
        "Each part with the metadata of its arrays. Token-major is ids, row pointers, activations and projections;",
        "sums are those of documents and the statistics of latents; records are groups, commits and `run.json`.",
        "",
        "| profile | bits | ids [bits] | " + " | ".join((*TOKEN_MAJOR, "**token-major**", *PARTS[4:])) + " | **all** |",
        "|---|---|---|" + "---|" * (len(PARTS) + 2),
    ]
    for row in found["formats"]:
        if parts := row["parts"]:
            cells = [parts[name] for name in TOKEN_MAJOR]
            cells += [sum(cells), *(parts[name] for name in PARTS[4:]), row["bytes_per_nonzero"]]
            numbers = " | ".join(f"{cell:.2f}" for cell in cells)
            profile = row["name"].split(", ")[1]
            lines.append(f"| {profile} | {row['precision_bits']} | {8 * parts['ids']:.2f} | {numbers} |")
    return lines


def _goals(found: dict[str, Any]) -> list[str]:
    s = found["setting"]
    stores = {row["precision_bits"]: row["parts"] for row in found["formats"] if row["name"] == _COMPACT}
    ids = 8 * next(iter(stores.values()))["ids"]
    longer = math.log2(GOAL_LATENTS / GOAL_L0) - math.log2(s["latents"] / s["l0"])
    lines = [
        f"Goals of the profile `compact`, set for L0 {GOAL_L0} and {GOAL_LATENTS:,} latents; here L0 {s['l0']:.1f} and "
        f"{s['latents']:,}. Values (activations",
        "and projections) compare as they are. An id takes about log2(latents / L0) bits and a constant: at the goal's",
        f"shape {longer:+.1f} bits by that count, and {longer / 8:+.2f} bytes in all.",
        "",
        f"- ids alone: {ids:.2f} bits against {GOAL_ID_BITS}: {_verdict(ids, GOAL_ID_BITS, longer)}.",
    ]
    for bits, goal in GOALS.items():
        if bits in stores:
            got = sum(stores[bits][name] for name in TOKEN_MAJOR)
            values = stores[bits]["activations"] + stores[bits]["projections"]
            lines.append(
                f"- {bits} bits, token-major: {got:.2f} against {goal}: {_verdict(got, goal, longer / 8)}; of these "
                f"{values:.2f} are values."
            )
    return lines


def _verdict(got: float, goal: float, more: float) -> str:
    """Whether a goal is met here, and whether it would be at the shape for which it was set."""
    here, there = ("met" if amount <= goal else "**missed**" for amount in (got, got + more))
    return f"{here} here, {there} at the goal's shape by that count ({got + more:.2f})"


_COMPACT = "ours, compact, whole store"


def _formats(found: dict[str, Any]) -> list[str]:
    half = found["half"]
    bits = sorted({row["precision_bits"] for row in found["formats"]})
    lines = [
        "## Against other formats",
        "",
        "Bytes per non-zero, and seconds to write / to read the token-major scores.",
        "",
        "| format | " + " | ".join(f"{b} bits" for b in bits) + " |",
        "|---|" + "---|" * len(bits),
    ]
    for name in dict.fromkeys(row["name"] for row in found["formats"]):
        of_bits = {row["precision_bits"]: row for row in found["formats"] if row["name"] == name}
        cells = [
            f"**{r['bytes_per_nonzero']:.2f}** ({r['write_seconds']:.2f} / {r['read_seconds']:.2f})"
            for r in (of_bits[b] for b in bits)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "A whole store also has the latent-major index, sums, tokens, texts and checksums, and its write derives them,",
        "syncs every file and reads it back; the others write to the page cache. Parquet and COO hold the token of",
        "every non-zero; npz keeps it as row pointers, the second matrix shares the first one's. delphi's layout has",
        "(row, position, latent) for every non-zero in five ranges of latents, and activations only (8 bytes): the",
        "projections are added in the same form; its copies of the tokens in every range are not counted. In fp16",
        f"{half['zero']:.1%} of the projections are zero and {half['subnormal']:.1%} subnormal, so that it does not",
        "hold the same values; the fp32 row does.",
    ]


def _ranking(found: dict[str, Any]) -> list[str]:
    lines = [
        "## What rounding does to rankings",
        "",
        "Latents by summed influence, ranked by `rank_latents` on stores of the same scores, against the store of 23",
        "bits: the corpus, then the worst and the middle of all documents. Overlap of the first 20; Kendall and",
        "Spearman of the exact first 100; the largest error of a sum relative to itself (first 100) and to Σ|g| (all).",
        "",
        "| bits | ranking | overlap | Kendall | Spearman | error / sum | error / Σabs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["ranking"]:
        corpus, rest = row["corpus"], row["documents"]
        lines.append(
            f"| {rest['precision_bits']} | corpus | {corpus['overlap']:.2f} | {corpus['kendall']:.4f} | "
            f"{corpus['spearman']:.5f} | {corpus['largest_of_sum']:.1e} | {corpus['largest_of_absolute']:.1e} |"
        )
        lines.append(
            f"| | {rest['num_rankings']} documents: worst (middle) | {rest['least_overlap']:.2f} "
            f"(mean {rest['mean_overlap']:.3f}) | {rest['least_kendall']:.4f} ({rest['median_kendall']:.4f}) | "
            f"{rest['least_spearman']:.5f} ({rest['median_spearman']:.5f}) | {rest['largest_of_sum']:.1e} | "
            f"{rest['largest_of_absolute']:.1e} |"
        )
    return lines
