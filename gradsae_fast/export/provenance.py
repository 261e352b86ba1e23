"""Where exported numbers come from and what they mean: one JSON document that every export carries.

    export            name of the format
    version           release of this package that wrote the export
    run               digest of the store's identity, as in every ranking
    complete          whether every segment of the corpus was committed
    revisions         how often segments were replaced since (drop, compact, repair);  dropped  documents that were
                      dropped; both are absent where none
    site, objective, by, unit, influence_unit, sign, includes_special      as in a ranking (see `ranking.answer`)
    num_documents     chosen documents with at least one counted token;  num_tokens  their counted tokens
    document, where, latent      what was asked for; absent where everything was
    precision_bits    bits of significand kept of activations and projections; 23 is exact
    model, sae, corpus, method, tokens, versions      the store's identity, the SAE's part of this site

The document is ASCII: characters outside it, lone surrogates too, are escaped, so that every container can hold it.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from gradsae_fast.method import SIGN, influence_unit
from gradsae_fast.ranking.answer import identity_digest
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.selection import Selection, keys_of
from gradsae_fast.ranking.tally import scope
from gradsae_fast.ranking.units import score_unit
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

PROVENANCE = "provenance"
"""Name of the entry that holds the document, in every format."""


def describe_export(
    store: ScoreStore,
    selection: Selection,
    question: Question,
    *,
    export: str,
    document: str | Sequence[str] | None,
    where: str | None,
    latents: Array | None,
    **facts: Any,
) -> dict[str, Any]:
    """Return the provenance of an export as JSON values; facts that are None are left out."""
    identity = store.identity
    described = {
        "export": export,
        "version": version("gradsae-fast"),
        "run": identity_digest(store),
        "complete": store.is_complete,
        "revisions": store.num_revisions or None,
        "dropped": store.num_dropped or None,
        "site": question.site,
        "objective": question.objective,
        "by": question.by,
        "unit": score_unit(question.objective, question.by, per_token=bool(facts.get("per_token"))),
        "influence_unit": influence_unit(question.objective),
        "sign": SIGN,
        "includes_special": question.include_special,
        **scope(store, selection, question),
        "precision_bits": store.precision_bits,
        **{name: identity.get(name) for name in ("model", "corpus", "method", "tokens", "versions")},
        "appended": [generation.identity.get("corpus") for generation in store.generations[1:]] or None,
        "sae": identity.get("saes", {}).get(question.site),
        "document": keys_of(document),
        "where": where,
        "latent": None if latents is None else latents.tolist(),
        **facts,
    }
    return {name: value for name, value in described.items() if value is not None}


def to_text(provenance: dict[str, Any]) -> str:
    """Write the document as ASCII JSON on one line."""
    return json.dumps(provenance, sort_keys=True, ensure_ascii=True)
