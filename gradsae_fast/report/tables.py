"""The tables of latents and of documents.

The overview has their first rows; where there are more, all of them are listed on pages of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.counts import counted
from gradsae_fast.report.document_page import show_value
from gradsae_fast.report.numbers import count
from gradsae_fast.report.subject import Subject
from gradsae_fast.report.sums import DocumentTotals
from gradsae_fast.report.svg import signed_bar

LISTED = 100
LISTING = 200
NUM_COLUMNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Rows in order, and what its caption says they are of."""

    what: str
    rows: tuple[dict[str, Any], ...]
    of: str
    columns: tuple[str, ...] = ()  # of metadata

    def caption(self, num_rows: int) -> str:
        """Return what is said above so many of the rows."""
        return f"{count(num_rows)} of {self.of}"


def listing_files(what: str, num_rows: int) -> list[tuple[str, int, int]]:
    """Return (file, first, last) of the pages that list all rows; none where the overview has them all.

    >>> listing_files("latents", 250)
    [('latents-1.html', 1, 200), ('latents-2.html', 201, 250)]
    """
    if num_rows <= LISTED:
        return []
    return [
        (f"{what}-{at + 1}.html", first + 1, min(first + LISTING, num_rows))
        for at, first in enumerate(range(0, num_rows, LISTING))
    ]


def latent_table(subject: Subject, words: Mapping[int, Sequence[str]]) -> Listing:
    """List the latents with a page, in their order; those that never fire have zeros.

    Args:
        subject: the audit's.
        words: the tokens on which each latent fires hardest.
    """
    table, rows = subject.totals, []
    place = {latent: at for at, latent in enumerate(table["latent"].tolist())}
    absolute = float(table["absolute"].sum())
    found = [place[latent] for latent in subject.latents if latent in place]
    sums, sizes = table["influence"][found], table["absolute"][found]
    largest = float(np.max(np.abs(np.divide(sums, sizes, out=np.zeros(len(found)), where=sizes > 0)), initial=0.0))
    for latent in subject.latents:
        names = ("rank", "frequency", "num_documents", "influence", "absolute")
        at = place.get(latent)
        row = {name: 0 if at is None else table[name][at].item() for name in names}
        lean = row["influence"] / row["absolute"] if row["absolute"] else 0.0
        rows.append(
            {
                **row,
                "lean": lean,
                "words": words.get(latent, ()),
                "rank": "" if at is None else row["rank"],
                "latent": latent,
                "share": row["absolute"] / absolute if absolute else 0.0,
                "bar": signed_bar(lean, largest),
            }
        )
    return Listing(
        what="latents",
        rows=tuple(rows),
        of=f"{counted(len(rows), 'latent')} with a page. Sums are over counted tokens; lean is influence over "
        "|influence|.",
    )


def document_table(subject: Subject, totals: DocumentTotals, documents: Sequence[int]) -> Listing:
    """List the documents with a page, in their order."""
    segments, question = subject.store.segments, subject.question
    parts = {int(totals.segment_M[document]) for document in documents}
    keys = {part: segments[part].document_keys() for part in parts}
    tables = {part: segments[part].metadata() for part in parts}
    values = {part: segments[part].values_of(question.objective, question.site) for part in parts}
    known = sorted({name for table in tables.values() for name in table})
    columns, rows = known[:NUM_COLUMNS], []
    for document in documents:
        part, slot = int(totals.segment_M[document]), int(totals.slot_M[document])
        num_tokens, absolute = int(totals.num_tokens_M[document]), float(totals.absolute_M[document])
        rows.append(
            {
                "number": document,
                "key": keys[part][slot],
                "values": [show_value(tables[part][name][slot]) if name in tables[part] else "" for name in columns],
                "num_tokens": num_tokens,
                "value": float(values[part][slot]),
                "influence": float(totals.influence_M[document]),
                "absolute": absolute,
                "per_token": absolute / num_tokens,
            }
        )
    of = (
        f"{counted(len(rows), 'document')} with a page; the corpus has {count(subject.facts['num_documents'])}. In "
        "order of |influence|, summed over tokens and latents; longer texts have larger sums."
    )
    if len(known) > len(columns):
        of += f" {len(columns)} of {len(known)} metadata columns are listed."
    return Listing(what="documents", rows=tuple(rows), of=of, columns=tuple(columns))
