"""The model and the SAE of a store, found through what its run recorded, and refused where they have changed."""

import copy
from dataclasses import dataclass
from typing import Any

from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.errors import IdentityError, StoreError
from gradsae_fast.method import Method, resolve_method
from gradsae_fast.model.load import LanguageModel, load_model
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.score import SitedSae
from gradsae_fast.store import ScoreStore


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """What made the scores of one site: a model, an SAE (sinks recognised as then), a method and its tokens."""

    lm: LanguageModel
    sited: SitedSae
    method: Method
    rules: TokenRules


def load_origin(store: ScoreStore, site: str, *, error_term: bool | None = None, device: str | None = None) -> Origin:
    """Load what scored a site of a store; the corpus is not needed.

    `error_term` takes the place of the method's own; `device` of the recorded one.

    Raises:
        StoreError: the store does not record its configuration or its gate.
        IdentityError: the model or the SAE is no longer the store's.
        GradsaeError: anything that loading raises.
    """
    gate = store.facts("gate")
    if "config" not in store.run or gate is None:
        raise StoreError(
            f"{store.path} does not record the configuration and the gate of its run; expected a store made by "
            "`gradsae extract`"
        )
    config = _config_of(store, error_term, device)
    lm = load_model(config.model)
    _require_same(store, "model", config.model.path, lm.digest, store.identity["model"]["digest"])
    source = store.run["saes"][site]["source"]
    saes = load_sited_saes(lm, [sae for sae in config.saes if sae.path == source])
    sited = next(one for one in saes if one.site.path == site)
    _require_same(store, "SAE", source, sited.sae.facts.digest, store.identity["saes"][site]["digest"])
    tokens = store.identity["tokens"]
    return Origin(
        lm=lm,
        sited=sited.with_sinks(config.score.sink_norm_ratio, gate["median_norms"]),
        method=resolve_method(config.score, tuple(store.identity["functions"])),
        rules=TokenRules(**tokens | {"masked_ids": frozenset(tokens["masked_ids"])}),
    )


def _config_of(store: ScoreStore, error_term: bool | None, device: str | None) -> ExtractConfig:
    """The recorded configuration in the store's precision, with the two choices of the caller."""
    tables: dict[str, Any] = copy.deepcopy(store.run["config"])
    tables["sae"] = tables.pop("saes")
    tables["model"]["dtype"] = store.identity["model"]["dtype"].removeprefix("torch.")
    if device is not None:  # on one device, wherever the run's model was spread
        tables["model"] |= {"device": device, "device_map": None}
    if error_term is not None:
        tables["score"] |= {"use_error_term": error_term, "splice": None if error_term else tables["score"]["splice"]}
    return config_from_tables(tables)


def _require_same(store: ScoreStore, what: str, source: str, found: str, expected: str) -> None:
    if found != expected:
        raise IdentityError(
            f"the {what} {source!r} is not the one that made {store.path}: its digest is {found}, expected {expected}. "
            f"Restore that {what}, or extract again with this one."
        )
