"""What all decoder rows of a store say, computed once and kept in it, for readers that have no model.

For C latents of width D and a vocabulary of V tokens this costs C·V·D multiplications for the logits and C²·D for the
neighbours, and no forward pass of the model's layers; memory stays at the model, the SAE and a tile of each.

Letters: C latents, T tokens on each side, K neighbours.
"""

from collections.abc import Callable

import numpy as np
import torch

from gradsae_fast.describe.logits import DirectEffects, direct_effects, residual_rows, tile_size
from gradsae_fast.describe.neighbours import nearest_rows
from gradsae_fast.describe.origin import Origin, load_origin
from gradsae_fast.errors import ModelError, QueryError
from gradsae_fast.records import Array
from gradsae_fast.store import Described, ScoreStore, open_scores
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.sidecars.described import publish_described

NEIGHBOURS = 10
Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def describe_every(
    store: str | Place | ScoreStore,
    *,
    tokens: int = 10,
    neighbours: int = NEIGHBOURS,
    device: str | None = None,
    on_message: Tell | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Described]:
    """Describe all latents of all sites, keep it in the store (`ScoreStore.described`), and return it by site.

    What was kept before is replaced. A site that does not write into the residual stream has no direct logit effects:
    only its neighbours are kept.

    Args:
        store: an open store, or its path. Its model and SAEs are loaded; its corpus is not needed.
        tokens: promoted and suppressed tokens of each latent.
        neighbours: latents of nearest decoder rows.
        device: where to compute; None: as the store's run was told.
        on_message: is told each decision in a sentence.
        on_progress: is told what is computed of a site, latents done, and latents in all.

    Raises:
        QueryError: a number is below 1, or the store has no segment yet.
        BusyError: another process writes to the store.
        StoreError: the disk is full or read-only.
        GradsaeError: what `load_origin` raises.
    """
    for name, value in {"tokens": tokens, "neighbours": neighbours}.items():
        if value < 1:
            raise QueryError(f"got {name} = {value}; expected 1 or more")
    opened = store if isinstance(store, ScoreStore) else open_scores(store)
    if not opened.sites:
        raise QueryError(f"{opened.path} has no segment yet, and so no site; extract first")
    tell, progress = on_message or (lambda _: None), on_progress or (lambda *_: None)
    with locked(opened.path):
        found = {
            site: _describe_site(load_origin(opened, site, device=device), tokens, neighbours, tell, progress)
            for site in opened.sites
        }
        publish_described(opened.path, found, opened.profile)
    return found


def _describe_site(origin: Origin, tokens: int, neighbours: int, tell: Tell, progress: Progress) -> Described:
    site, row_CD = origin.sited.site.path, origin.sited.sae.w_dec_CD
    effects = _effects(origin, tokens, tell, progress)
    with torch.no_grad():
        latent_CK, cosine_CK = nearest_rows(
            row_CD, neighbours, on_tile=lambda done: progress(f"{site}: nearest decoder rows", done, len(row_CD))
        )
    return Described(
        promoted_CT=effects.promoted_KM.astype(np.uint32),
        promoted_effect_CT=effects.promoted_effect_KM,
        suppressed_CT=effects.suppressed_KM.astype(np.uint32),
        suppressed_effect_CT=effects.suppressed_effect_KM,
        neighbours_CK=latent_CK.astype(np.uint32),
        cosine_CK=cosine_CK,
    )


def _effects(origin: Origin, tokens: int, tell: Tell, progress: Progress) -> DirectEffects:
    """Direct logit effects of all latents of a site; of none token, where it does not write into the stream."""
    lm, sited = origin.lm, origin.sited
    num_latents, size = len(sited.sae.w_dec_CD), tile_size(lm)
    try:
        residual_rows(lm, sited, range(1))
    except ModelError as error:
        tell(f"{error} Kept for {sited.site.path}: nearest decoder rows only.")
        return _no_effects(num_latents)
    parts = []
    for first in range(0, num_latents, size):
        last = min(first + size, num_latents)
        parts.append(direct_effects(lm, residual_rows(lm, sited, range(first, last)), tokens))
        progress(f"{sited.site.path}: promoted and suppressed tokens", last, num_latents)
    return DirectEffects(**{name: _joined(parts, name) for name in DirectEffects.__dataclass_fields__})


def _joined(parts: list[DirectEffects], name: str) -> Array:
    return np.concatenate([getattr(part, name) for part in parts])


def _no_effects(num_latents: int) -> DirectEffects:
    none_CT = np.zeros((num_latents, 0))
    return DirectEffects(
        promoted_KM=none_CT.astype(np.int64),
        promoted_effect_KM=none_CT.astype(np.float32),
        suppressed_KM=none_CT.astype(np.int64),
        suppressed_effect_KM=none_CT.astype(np.float32),
    )
