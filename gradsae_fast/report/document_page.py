"""The page of one document: its text coloured by the influence of all latents together, and what drives it.

Letters: T tokens of the document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from gradsae_fast.method import influence_unit
from gradsae_fast.records import Array
from gradsae_fast.report.drivers import Driver, Strongest, find_drivers
from gradsae_fast.report.entries import RUN_TOKENS, SegmentEntries
from gradsae_fast.report.marked import DOCUMENT_STEPS, mark_document
from gradsae_fast.report.numbers import short
from gradsae_fast.report.pages import Limits
from gradsae_fast.report.passages import Piece, SegmentPieces
from gradsae_fast.report.subject import Subject
from gradsae_fast.report.sums import DocumentTotals
from gradsae_fast.visible import cut, word

NUM_TOKENS = 8
SCALE_QUANTILE = 0.99
_BLOCK = 256
_AROUND = 7  # tokens on each side of one of the largest


def document_file(document: int) -> str:
    """Return the path of a document's page in the audit; `document` counts the store's documents from 0."""
    return f"documents/{document:06d}.html"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentText:
    """A document read from its segment."""

    key: str
    value: float  # of the objective, as stored
    metadata: tuple[tuple[str, str], ...]
    pieces: tuple[Piece, ...]
    influence_T: Array  # float64, sum over all latents; 0 on masked tokens
    counted_T: Array  # bool
    drivers: tuple[Driver, ...]
    strongest: tuple[int, ...]  # for each driver its token among the T


def read_document(subject: Subject, totals: DocumentTotals, document: int, pieces: SegmentPieces) -> DocumentText:
    """Read a document: text, metadata, drivers, and the summed influence of every token, in runs of bounded size."""
    segment, slot = subject.store.segments[int(totals.segment_M[document])], int(totals.slot_M[document])
    num_latents, drivers = subject.question.num_latents, find_drivers(subject, segment, slot)
    entries, strongest = (
        SegmentEntries(segment, subject.question, np.arange(num_latents)),
        Strongest(drivers, num_latents),
    )
    first, last = int(pieces.edges[slot]), int(pieces.edges[slot + 1])
    influence_T = np.zeros(last - first)
    for start in range(first, last, RUN_TOKENS):
        run = entries.read(start, min(start + RUN_TOKENS, last))
        influence_T += np.bincount(run.token_Z - first, run.influence_Z, last - first)
        strongest.add(run)
    return DocumentText(
        key=pieces.keys[slot],
        value=float(segment.values_of(subject.question.objective, subject.question.site)[slot]),
        metadata=tuple((name, show_value(values[slot])) for name, values in segment.metadata().items()),
        pieces=pieces.pieces(slot, first, last),
        influence_T=influence_T,
        counted_T=entries.counted_N[first:last],
        drivers=drivers,
        strongest=tuple((strongest.token_D - first).tolist()),
    )


def show_value(value: Any) -> str:
    """Write a metadata value as text."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def document_values(
    subject: Subject, totals: DocumentTotals, shown: tuple[int, ...], at: int, text: DocumentText, limits: Limits
) -> dict[str, Any]:
    """Return what the template needs for the document `shown[at]`."""
    document, objective = shown[at], subject.question.objective
    num_tokens, absolute = int(totals.num_tokens_M[document]), float(totals.absolute_M[document])
    counted = np.abs(text.influence_T[text.counted_T])
    scale = float(np.quantile(counted[np.isfinite(counted)], SCALE_QUANTILE)) if len(counted) else 0.0
    extremes = _extremes(text)
    marked, num_shown = _within(text, scale, limits.text_bytes, frozenset([*extremes.tolist(), *text.strongest]))
    return {
        "key": text.key,
        "before": shown[at - 1] if at else None,
        "after": shown[at + 1] if at + 1 < len(shown) else None,
        "num_tokens": num_tokens,
        "value": text.value,
        "value_unit": "log p" if objective == "continuation-prob" else cut(influence_unit(objective), 40),
        "influence": float(totals.influence_M[document]),
        "absolute": absolute,
        "per_token": absolute / num_tokens,
        "metadata": text.metadata[: limits.rows],
        "num_metadata": len(text.metadata),
        "sides": _sides(("Latents", ", summed over the document."), _drivers(text, num_shown)),
        "peaks": _sides(("Tokens", "; filled as in the text below."), _peaks(text, extremes, scale, num_shown)),
        "text": marked,
        "scale": scale,
        "steps": ", ".join(f"{short(100 * step)} %" for step in DOCUMENT_STEPS),
        "num_shown": num_shown,
        "num_all": len(text.pieces),
    }


def _drivers(text: DocumentText, num_shown: int) -> list[dict[str, Any]]:
    """Each driver with its strongest token; `at` only where the page shows it."""
    return [
        {
            "latent": driver.latent,
            "influence": driver.influence,
            "num_active": driver.num_active,
            "word": word(text.pieces[at].text),
            "at": at if at < num_shown else None,
        }
        for driver, at in zip(text.drivers, text.strongest, strict=True)
    ]


def _sides(what: tuple[str, str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two tables: what raises, what lowers."""
    return [
        {
            "caption": f"{what[0]} that {verb} the objective most{what[1]}",
            "rows": [row for row in rows if sign * row["influence"] > 0],
        }
        for verb, sign in (("raise", 1), ("lower", -1))
    ]


def _extremes(text: DocumentText) -> Array:
    """The tokens with the largest influence above zero, then those with the most negative, of all latents together."""
    value_T = np.where(text.counted_T & np.isfinite(text.influence_T), text.influence_T, 0.0)
    ends = (np.argsort(sign * value_T, kind="stable")[:NUM_TOKENS] for sign in (-1, 1))
    return np.concatenate([end[sign * value_T[end] > 0] for end, sign in zip(ends, (1, -1), strict=True)])


def _peaks(text: DocumentText, extremes: Array, scale: float, num_shown: int) -> list[dict[str, Any]]:
    """Each of the extremes in a few words of its text; `at` only where the page shows it."""
    rows = []
    for at in extremes.tolist():
        around = slice(max(0, at - _AROUND), at + _AROUND + 1)
        marked = mark_document(
            text.pieces[around], text.influence_T[around], text.counted_T[around], scale, peak=at - around.start
        )
        rows.append(
            {
                "influence": float(text.influence_T[at]),
                "position": at,
                "text": marked,
                "at": at if at < num_shown else None,
            }
        )
    return rows


def _within(text: DocumentText, scale: float, num_bytes: int, anchors: frozenset[int]) -> tuple[Markup, int]:
    """Mark the document up until its HTML has so many bytes; also return how many tokens that shows."""
    parts, used, last = [], 0, 0
    for first in range(0, len(text.pieces), _BLOCK):
        until = min(first + _BLOCK, len(text.pieces))
        run = slice(first, until)
        part = mark_document(
            text.pieces[run], text.influence_T[run], text.counted_T[run], scale, anchors=anchors, first=first
        )
        used += len(part.encode())
        if used > num_bytes and first:
            break
        parts.append(part)
        last = until
    return Markup("").join(parts), last
