"""The straight line of an audit: what it is about, two walks over the scores, the pages, the folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from gradsae_fast.counts import counted
from gradsae_fast.errors import ConfigError, QueryError
from gradsae_fast.method import influence_unit
from gradsae_fast.report.document_page import document_file, document_values, read_document
from gradsae_fast.report.folder import AuditFolder, check_folder, replaced
from gradsae_fast.report.latent_page import LatentPages, latent_file
from gradsae_fast.report.numbers import count, percent
from gradsae_fast.report.overview import overview_values
from gradsae_fast.report.pages import PAGE_BYTES, Limits, Pages
from gradsae_fast.report.passages import SegmentPieces, read_passages
from gradsae_fast.report.peaks import Peaks, find_peaks
from gradsae_fast.report.subject import DENSE, Subject, choose_subject
from gradsae_fast.report.sums import DocumentTotals, read_sums
from gradsae_fast.report.tables import LISTED, Listing, document_table, latent_table, listing_files
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.places.place import disk_path_of
from gradsae_fast.visible import cut

_TABLES = Limits(contexts=1, rows=1, characters=80, text_bytes=1)
_WORDS = 4
_BLOCK = 256  # latents whose contexts are in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    """What was written."""

    folder: Path
    num_latents: int
    num_documents: int
    num_files: int
    num_bytes: int
    largest_page: int  # bytes


def write_report(
    store: ScoreStore,
    folder: str | Path,
    *,
    latents: Sequence[SupportsIndex] | None = None,
    k: int = 100,
    documents: int = 20,
    contexts: int = 20,
    context: int = 12,
    groups: Sequence[str | tuple[str, str]] = (),
    labels: str | Path | None = None,
    site: str | None = None,
    objective: str | None = None,
) -> ReportSummary:
    """Write an audit: a folder of static pages to be opened at `index.html`.

    The same store and arguments give the same bytes.

    Args:
        store: an open store.
        folder: where; it must be empty, missing, or an audit, which is replaced.
        latents: numbers of the latents that get a page; None: the first `k` by their summed |influence|, and those that
            set groups apart most.
        k: see `latents`.
        documents: how many documents get a page: those with the largest |influence|, summed over tokens and latents.
        contexts: tokens in each of a latent's three lists.
        context: tokens of text on each side of them.
        groups: metadata columns, whose values are compared with the rest, and pairs of conditions.
        labels: csv with the columns latent and label, or a Neuronpedia export (JSON lines with index and description).
        site, objective: needed where the store has several.

    Raises:
        QueryError: an unknown name or latent, a count below 1, or groups that cannot be made.
        ConfigError: a folder that may not be replaced, or labels that cannot be read.
        StoreError: a damaged store, a full or read-only disk, or an address of object storage for the folder.
    """
    place = disk_path_of(folder)
    _check(store, place, documents=documents, contexts=contexts, context=context)
    subject = choose_subject(store, latents=latents, k=k, groups=groups, labels=labels, site=site, objective=objective)
    totals = read_sums(subject)
    peaks, shown = find_peaks(subject, contexts), _most_influenced(totals, documents)
    pages = Pages(_shared(subject, shown))
    limits = Limits(contexts=contexts, rows=40, characters=160, text_bytes=PAGE_BYTES - 40_000)
    with replaced(place) as audit:
        words = _write_latents(audit, pages, subject, peaks, limits, context)
        _write_documents(audit, pages, subject, totals, shown, limits)
        tables = latent_table(subject, words), document_table(subject, totals, shown)
        for table in tables:
            _write_listing(audit, pages, table)
        rules = _rules(subject, len(shown), contexts, context)
        _write_overview(audit, pages, overview_values(subject, words), *tables, rules)
        audit.finish(_marker(subject))
    return ReportSummary(
        folder=place,
        num_latents=len(subject.latents),
        num_documents=len(shown),
        num_files=len(audit.sizes),
        num_bytes=sum(audit.sizes.values()),
        largest_page=max(size for name, size in audit.sizes.items() if name.endswith(".html")),
    )


def _check(store: ScoreStore, folder: Path, *, documents: int, contexts: int, context: int) -> None:
    for name, value in (("documents", documents), ("contexts", contexts)):
        if value < 1:
            raise QueryError(f"got {name} = {value}; expected 1 or more")
    if context < 0:
        raise QueryError(f"got context = {context}; expected 0 or more tokens")
    target = check_folder(folder)
    if isinstance(store.path, Path) and target.is_relative_to(store.path.resolve()):
        raise ConfigError(f"{folder} lies in the store {store.path}; choose a folder outside of it.")


def _most_influenced(totals: DocumentTotals, k: int) -> tuple[int, ...]:
    """The documents with the largest summed |influence|, ties in corpus order; none without a counted token."""
    order = np.lexsort((np.arange(len(totals.absolute_M)), -totals.absolute_M))
    return tuple(order[totals.num_tokens_M[order] > 0][:k].tolist())


def _shared(subject: Subject, documents: tuple[int, ...]) -> dict[str, Any]:
    question = subject.question
    masked = "Masked tokens are counted." if question.include_special else "Masked tokens are not counted."
    return {
        "store_name": cut(subject.store.path.name, 80),
        "site": cut(question.site, 80),
        "objective": cut(question.objective, 80),
        "unit": cut(influence_unit(question.objective), 40),
        "facts": subject.facts,
        "masked": masked,
        "num_latents": question.num_latents,
        "num_firing": len(subject.totals["latent"]),
        "dense_limit": DENSE,
        "labels": subject.labels,
        "dense_latents": frozenset(subject.totals["latent"][subject.totals["frequency"] > DENSE].tolist()),
        "latent_pages": {latent: latent_file(latent) for latent in subject.latents},
        "document_pages": {document: document_file(document) for document in documents},
        "listings": listing_files("latents", len(subject.latents)),
        "document_listings": listing_files("documents", len(documents)),
        "choice": _choice(subject),
    }


def _choice(subject: Subject) -> str:
    total = float(subject.totals["absolute"].sum())
    chosen = np.isin(subject.totals["latent"], subject.latents)
    share = float(subject.totals["absolute"][chosen].sum()) / total if total else 0.0
    which = "chosen by number" if subject.num_largest is None else "those with the largest summed |influence|"
    if subject.num_largest is not None and subject.num_largest < len(subject.latents):
        which = (
            f"the {count(subject.num_largest)} with the largest summed |influence| and those first in a group contrast"
        )
    return (
        f"{count(len(subject.latents))} of {count(subject.question.num_latents)} latents have a page, {which}; "
        f"together they hold {percent(share)} of the total. Sums are over all counted tokens, in "
        f"{cut(influence_unit(subject.question.objective), 40)}."
    )


def _rules(subject: Subject, num_documents: int, contexts: int, context: int) -> list[str]:
    return [
        f"Every number is over all {counted(subject.facts['num_tokens'], 'counted token')} of "
        f"{counted(subject.facts['num_documents'], 'document')} in the store's committed segments; nothing is "
        "subsampled.",
        _choice(subject),
        f"A latent's lists are its first {counted(contexts, 'token')} by influence above zero, by influence below zero "
        f"and by activation, each with {counted(context, 'token')} on both sides: extremes, not typical uses. Its "
        "histograms hold all of its tokens.",
        f"Pages there are of {counted(num_documents, 'document')}: those with the largest |influence|, summed over "
        "tokens and latents. A context of another document names it without a link.",
        "Control and direction characters of the texts are shown by signs; long texts are cut, and say by how much.",
    ]


def _write_overview(
    audit: AuditFolder,
    pages: Pages,
    overview: dict[str, Any],
    latents: Listing,
    documents: Listing,
    rules: Sequence[str],
) -> None:
    first, shown = latents.rows[:LISTED], documents.rows[:LISTED]
    values = overview | {
        "rows": first,
        "rows_caption": latents.caption(len(first)),
        "documents": shown,
        "documents_caption": documents.caption(len(shown)),
        "columns": documents.columns,
        "rules": rules,
    }
    audit.write("index.html", pages.fit("overview.html", _TABLES, partial(_always, values)))


def _always(values: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The values of a page that only its labels and keys can make too large, which the template cuts by the limits."""
    return values


def _write_listing(audit: AuditFolder, pages: Pages, table: Listing) -> None:
    parts = listing_files(table.what, len(table.rows))
    for name, first, last in parts:
        values = {
            "what": table.what.capitalize(),
            "parts": parts,
            "first": first,
            "last": last,
            "rows": table.rows[first - 1 : last],
            "rows_caption": table.caption(last - first + 1),
            "columns": table.columns,
        }
        audit.write(name, pages.fit("listing.html", _TABLES, partial(_always, values)))


def _write_documents(
    audit: AuditFolder, pages: Pages, subject: Subject, totals: DocumentTotals, shown: tuple[int, ...], limits: Limits
) -> None:
    for part in sorted({int(totals.segment_M[document]) for document in shown}):
        pieces = SegmentPieces(subject.store.segments[part], subject.vocabulary)
        for at, document in enumerate(shown):
            if totals.segment_M[document] == part:
                text = read_document(subject, totals, document, pieces)
                values = partial(document_values, subject, totals, shown, at, text)
                page = pages.fit("document.html", limits, values)
                audit.write(document_file(document), page)


def _write_latents(
    audit: AuditFolder,
    pages: Pages,
    subject: Subject,
    peaks: Peaks,
    limits: Limits,
    context: int,
) -> dict[int, tuple[str, ...]]:
    """Write the pages of latents, block by block: their contexts are the one thing that grows with their number.

    Returns the different tokens on which each fires hardest.
    """
    made, words = LatentPages(subject, peaks), dict[int, tuple[str, ...]]()
    for first in range(0, len(subject.latents), _BLOCK):
        rows = range(first, min(first + _BLOCK, len(subject.latents)))
        hits = {(row, end): found for row in rows for end, found in peaks.lists(row).items()}
        passages = read_passages(subject, hits, context)
        for row in rows:
            latent, mine = subject.latents[row], {end: passages[row, end] for end in peaks.lists(row)}
            page = pages.fit("latent.html", limits, partial(made.values, row, mine))
            audit.write(latent_file(latent), page)
            words[latent] = tuple(dict.fromkeys(passage.word for passage in mine["activation"]))[:_WORDS]
    return words


def _marker(subject: Subject) -> dict[str, Any]:
    return {
        "run": subject.facts["run"],
        "site": subject.question.site,
        "objective": subject.question.objective,
        "num_latents": len(subject.latents),
    }
