"""Exact effects of the documents of a rewritten segment: rows of what was measured, beside the new scores.

M documents of a segment, K dense latents of a site.
"""

from collections.abc import Sequence

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.records import SegmentScores
from gradsae_fast.store.arrays.encoding import exact_objects
from gradsae_fast.store.format.layout import Array
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.reader import ScoreStore
from gradsae_fast.store.records.commits import CommitRecord, prepare, publish_segment
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.exact import ExactDense


def carry_exact(
    store: ScoreStore,
    exact: ExactDense,
    sources: Sequence[StoredSegment],
    segment: tuple[SegmentScores, CommitRecord],
    room: Place,
) -> None:
    """Write the exact effects of a staged segment's documents to `room`, where its sources have them.

    Args:
        store: the open store.
        exact: its exact effects.
        sources: the segments that the staged one has its documents from, in their order.
        segment: scores and record of the staged one.
        room: a folder of `exact.new_room`.

    Raises:
        StoreError: some sources have effects and others have none, or such of other latents; a full or broken disk.
    """
    scores, record = segment
    missing = [source.index for source in sources if source.index in exact.missing]
    if len(missing) == len(sources) or not scores.documents.key:
        return
    if missing or not _same_latents(exact, sources):
        raise StoreError(
            f"{store.path} has exact effects of some of segments {[one.index for one in sources]} only, or of other "
            "latents in each; run the same `gradsae extract` command with --exact-dense to its end first"
        )
    latents = {site: exact.latents_of(sources[0].index, site) for site in exact.latents}
    drops = {
        (site, objective): _kept_rows(exact, sources, set(scores.documents.key), site, objective)
        for site in latents
        for objective in exact.objectives
    }
    facts = {"of": record.digest, "share": exact.share, "sites": list(latents), "objectives": exact.objectives}
    widths = {site: store.num_latents(site) for site in latents}
    prepare(room)
    publish_segment(room, scores.index, exact_objects(widths, latents, drops, store.profile), facts)


def _same_latents(exact: ExactDense, sources: Sequence[StoredSegment]) -> bool:
    return all(
        np.array_equal(exact.latents_of(source.index, site), exact.latents_of(sources[0].index, site))
        for source in sources
        for site in exact.latents
    )


def _kept_rows(exact: ExactDense, sources: Sequence[StoredSegment], kept: set[str], site: str, objective: str) -> Array:
    """The effects [M, K] of the documents with the kept keys."""
    parts = []
    for source in sources:
        keep_M = np.fromiter((key in kept for key in source.document_keys()), bool, source.num_documents)
        parts.append(exact.drops(source.index, site, objective)[keep_M])
    joined_MK: Array = np.concatenate(parts)
    return joined_MK
