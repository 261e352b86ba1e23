"""What the writer asks of a segment before it writes: lengths, orders and ids that fit together."""

from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.records import DocumentTable, SegmentScores, SparseScores, TokenTable
from gradsae_fast.store.format.claims import MOST_LATENTS, MOST_NONZEROS, MOST_TOKENS
from gradsae_fast.store.format.layout import TOKENS


def check_segment(segment: SegmentScores) -> None:
    """Refuse a segment whose parts do not fit together.

    Raises:
        StoreError: lengths, orders or ids that contradict each other; says which, in which table. Or it is larger than
            any reader takes one.
    """
    label = f"segment {segment.index}"
    _check(bool(segment.sites), f"{label} has no site")
    num_tokens, num_documents = _check_tables(label, segment.tokens, segment.documents)
    _check_extent(f"{label} has", num_tokens, "tokens", MOST_TOKENS)
    _check_extent(f"{label} has", num_documents, "documents", MOST_TOKENS)
    _check(
        num_tokens == 0 or int(segment.tokens.document.max()) < num_documents,
        f"{label}: a token names a document beyond the {num_documents} of the segment",
    )
    objectives = {tuple(scores.projections) for scores in segment.sites.values()}
    _check(len(objectives) == 1, f"{label}: its sites have different objectives: {sorted(objectives)}")
    for site, scores in segment.sites.items():
        _check_scores(f"{label}, site {site}", scores, num_tokens)


def _check_tables(label: str, tokens: TokenTable, documents: DocumentTable) -> tuple[int, int]:
    num_tokens, num_documents = len(tokens.token_id), len(documents.key)
    for spec in TOKENS:
        got = len(getattr(tokens, spec.name))
        _check(got == num_tokens, f"{label}: tokens.{spec.name} has {got} entries, token_id has {num_tokens}")
    columns: dict[str, Any] = {name: getattr(documents, name) for name in ("source", "row", "num_tokens", "status")}
    columns |= {"text": documents.text, **documents.metadata, **documents.objectives}
    for name, values in columns.items():
        _check(
            len(values) == num_documents,
            f"{label}: document column {name!r} has {len(values)} entries, there are {num_documents} documents",
        )
    _check(bool(np.all(tokens.document[1:] >= tokens.document[:-1])), f"{label}: tokens are not in document order")
    return num_tokens, num_documents


def _check_scores(label: str, scores: SparseScores, num_tokens: int) -> None:
    indptr, indices = scores.indptr, scores.indices
    num_nonzeros = len(indices)
    _check_extent(f"{label} has", scores.num_latents, "latents", MOST_LATENTS)
    _check_extent(f"{label} has", num_nonzeros, "active latents", MOST_NONZEROS)
    _check(len(indptr) == num_tokens + 1, f"{label}: indptr has {len(indptr)} entries, expected {num_tokens + 1}")
    rows_fit = indptr[0] == 0 and indptr[-1] == num_nonzeros and bool(np.all(indptr[1:] >= indptr[:-1]))
    _check(rows_fit, f"{label}: indptr does not rise from 0 to the {num_nonzeros} non-zeros")
    for name, values in {"activation": scores.activation, **scores.projections}.items():
        _check(len(values) == num_nonzeros, f"{label}: {name} has {len(values)} entries, expected {num_nonzeros}")
    if num_nonzeros:
        low, high = int(indices.min()), int(indices.max())
        _check(low >= 0 and high < scores.num_latents, f"{label}: latent ids {low} to {high} of {scores.num_latents}")
        rising = indices[1:] > indices[:-1]
        rising[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < num_nonzeros)] - 1] = True
        _check(bool(rising.all()), f"{label}: latent ids do not ascend inside a token")


def _check_extent(label: str, number: int, noun: str, most: int) -> None:
    """Refuse what no reader would take; see `claims`."""
    if number > most:
        raise StoreError(f"{label} {number:,} {noun}; expected at most {most:,}: the format has no more in one segment")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise StoreError(f"{what}; this is a fault in the caller: build the segment again")
