"""What a store was made of, for one site of it: the model, the SAE, and its texts as windows.

Letters: N real hidden states, T tokens of a window, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.config import ModelConfig, SaeConfig
from gradsae_fast.errors import IdentityError, QueryError, SaeError, StoreError
from gradsae_fast.model.load import LanguageModel, load_model
from gradsae_fast.model.sites import Wiring
from gradsae_fast.model.states import hidden_states
from gradsae_fast.records import Array, Batch, Document, TokenDocument, Window
from gradsae_fast.sae.load import load_sae
from gradsae_fast.score import SitedSae
from gradsae_fast.store import ScoreStore


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Text:
    """The first window of a document, and which of its tokens count."""

    window: Window
    counted_T: Array  # bool


def load_subject(
    store: ScoreStore, site: str | None, model: str | None, sae: str | None, device: str
) -> tuple[LanguageModel, SitedSae]:
    """Model and SAE of the store's run, checked against what it recorded."""
    if "config" not in store.run or not store.segments:
        raise StoreError(f"{store.path} has no scores, or does not record its run; expected one of `gradsae extract`")
    if site is None and len(store.sites) != 1:
        raise QueryError(f"the store has the sites {', '.join(store.sites)}; say which with --site.")
    if store.identity["method"].get("patch"):
        raise StoreError(
            f"{store.path} holds differences from patch texts, not latents of tokens; expected a store made without "
            "patch_column"
        )
    place = site or store.sites[0]
    store.num_latents(place)
    recorded, identity = store.run["config"], store.identity
    dtype = identity["model"]["dtype"].removeprefix("torch.")
    revision = None if model else recorded["model"]["revision"]
    path = model or recorded["model"]["path"]
    lm = load_model(ModelConfig(path=path, revision=revision, dtype=dtype, device=device))
    config = SaeConfig(**recorded["saes"][store.sites.index(place)])
    loaded = load_sae(
        sae or config.path,
        device=lm.device,
        revision=None if sae else config.revision,
        norm_factor=config.norm_factor,
        k=config.k,
    )
    if lm.digest != identity["model"]["digest"] or loaded.facts.digest != identity["saes"][place]["digest"]:
        raise IdentityError(f"model or SAE are not those of {store.path}; give the ones that it was made with.")
    if loaded.facts.reads is not None:
        raise SaeError(f"{loaded.facts.source!r} is a transcoder: it does not compose what it reads. Expected an SAE.")
    if loaded.prediction is not None:
        raise SaeError(
            f"{loaded.facts.source!r} is a temporal SAE: it composes a token from the tokens before it too, and a made "
            "activation has none. Expected an SAE that encodes each token by itself."
        )
    return lm, SitedSae(wiring=Wiring.at(lm.site(place)), sae=loaded)


def read_texts(store: ScoreStore, pool_tokens: int, seed: int) -> Iterator[Text]:
    """The first windows of the store's documents, in random order, until the pool is full."""
    length = int(store.run["config"]["corpus"]["context_length"])
    random, left = np.random.default_rng([seed, 0]), pool_tokens
    order = [(segment, slot) for segment in store.segments for slot in range(segment.num_documents)]
    for number in random.permutation(len(order)).tolist():
        if left <= 0:
            return
        segment, slot = order[number]
        text = _text(segment, slot, length)
        if text is not None:
            left -= int(text.counted_T.sum())
            yield text


def _text(segment: Any, slot: int, length: int) -> Text | None:
    rows = np.flatnonzero(segment.token_column("document") == slot)[:length]
    if len(rows) == 0:
        return None
    ids = segment.token_column("token_id")[rows].astype(np.int32)
    key = segment.document_keys()[slot]
    document = TokenDocument(
        document=Document(key=key, text="", source="", row=slot, metadata={}),
        index=slot,
        token_ids=ids,
        char_start=np.zeros(len(ids), np.int32),
        char_end=np.zeros(len(ids), np.int32),
        special=np.zeros(len(ids), bool),
        num_bos=0,
    )
    window = Window(document=document, slot=slot, token_ids=ids, num_context=0, first_position=0)
    return Text(window=window, counted_T=segment.token_column("mask")[rows] == 0)


def real_states(lm: LanguageModel, sited: SitedSae, texts: Sequence[Text], pool_tokens: int) -> Tensor:
    """Real hidden states at tokens that count [N, D], float32."""
    parts = []
    for text in texts:
        hidden_TD = hidden_states(lm, batch_of(text.window), [sited.site])[sited.site.path].float()
        parts.append(hidden_TD[torch.from_numpy(text.counted_T).to(hidden_TD.device)])
    pool_ND = torch.cat(parts)[:pool_tokens] if parts else torch.zeros(0, 1)
    if len(pool_ND) < 2:
        raise StoreError("fewer than two tokens of the store count; expected a store of whole texts")
    return pool_ND


def batch_of(window: Window) -> Batch:
    """A batch of one window."""
    return Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))
