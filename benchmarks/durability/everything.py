"""A store that has every kind of object, and all that a reader can get from it as one digest."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.durability.contents import digest
from benchmarks.durability.small_run import Acknowledge, ignore, write_all
from gradsae_fast.ranking import rank_documents, rank_latents, rank_tokens
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.described import Described, publish_described
from gradsae_fast.store.sidecars.exact import ExactWriter
from tests.store.synthetic import SITE


def write_everything(store: Path, acknowledge: Acknowledge = ignore, seed: int = 0) -> None:
    """Write what a store can hold, or what is missing of it."""
    write_all(store, acknowledge, seed)
    write_sidecars(store)


def write_sidecars(store: Path) -> None:
    """Write what is made from a complete store: exact effects, what decoder rows say, the index."""
    opened = open_scores(store)
    with locked(store):
        dense = {SITE: np.array([0, 3])}
        exact = ExactWriter(store, opened.segments, opened.profile, share=0.2, dense=dense)
        for segment in opened.segments:
            if segment.index not in exact.committed:
                drop_MK = np.ones((segment.num_documents, 2), np.float32)
                exact.write(segment, {(SITE, objective): drop_MK for objective in opened.objectives})
        if opened.described(SITE) is None:
            publish_described(store, {SITE: _described(opened.num_latents(SITE))}, opened.profile)
    if open_scores(store).index is None:
        build_index(store, leaders=2)


def _described(num_latents: int) -> Described:
    ids, values = np.ones((num_latents, 2), np.uint32), np.ones((num_latents, 2), np.float32)
    return Described(
        promoted_CT=ids,
        promoted_effect_CT=values,
        suppressed_CT=ids,
        suppressed_effect_CT=values,
        neighbours_CK=ids,
        cosine_CK=values,
    )


def readings(path: Path) -> dict[str, Callable[[], list[Any]]]:
    """What a reader can get from a store, by the room of the store that it is in; opens the store.

    Rooms of segments and of their exact effects are apart for each: `segments/000002`. What the index is asked reads
    no segment that it need not.
    """
    store = open_scores(path)
    rooms: dict[str, Callable[[], list[Any]]] = {
        "run.json": lambda: [store.identity, store.num_segments],
        "facts": lambda: [store.facts("gate")],
        "dictionary": lambda: [store.token_strings(), store.decoder_norms(SITE)],
        "described": lambda: [store.described(SITE)],
        "index": lambda: _answers(store),
    }
    for segment in store.segments:
        rooms[f"segments/{segment.index:06d}"] = partial(_segment, segment)
        rooms[f"exact/segments/{segment.index:06d}"] = partial(_effects, store, segment.index)
    return rooms


def _answers(store: ScoreStore) -> list[Any]:
    tables = (rank_latents(store), rank_tokens(store, latent=3), rank_documents(store, latent=3))
    return [table.to_pylist() for table in tables]


def _segment(segment: StoredSegment) -> list[Any]:
    site = segment.site(SITE)
    by_latent = [site.by_latent(latent) for latent in range(site.num_latents)]
    tables = [segment.tokens(), segment.documents(), segment.counted_tokens(), site.by_token(), by_latent]
    return [segment.digest, *tables, site.document_sums(), site.latent_stats()]


def _effects(store: ScoreStore, index: int) -> list[Any]:
    effects = store.exact_dense()
    assert effects is not None
    return [effects.drops(index, SITE, name) for name in store.objectives]


def read_everything(path: Path) -> str:
    """Digest of all numbers and texts that a reader can get from a store, and of the answers that need its index."""
    return digest([read() for read in readings(path).values()])
