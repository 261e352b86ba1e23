"""An answer: an Arrow table whose schema metadata says what its numbers mean.

Metadata of every table (text as it is, everything else as JSON; what does not apply is absent):

    ranking             latents, documents, tokens, contrast, groups, oddities, stability or comparison
    site, objective     where and of what the scores were taken
    by                  influence, positive, absolute, activation or frequency
    unit                unit of what is ranked: score; difference, mean_a and mean_b; a token's value
    influence_unit      unit of the columns influence, positive, absolute, max_influence
    sign                what a positive influence says
    includes_special    whether masked tokens (special tokens, attention sinks) are counted
    num_documents       chosen documents with at least one counted token (a contrast: num_documents_a, _b, _both)
    num_tokens          their counted tokens (a contrast: num_tokens_a, _b)
    k                   rows asked for; null: all
    polarity            positive or negative: only tokens on which the activation has that sign; absent: both
    exact_dense         share of the tokens above which a latent has its exact effect; absent where none was asked
    num_compared        latents that have a p, of all groups together: what their q is corrected for
    permutations        relabellings of a permutation test, beside the true grouping
    seed                of their draw; absent where they are all there are
    groups              of an answer about groups: each value of the column and how many documents it has
    run                 digest of the store's identity (configuration, model, SAE, corpus)
    revisions           how often segments of the store were replaced since (drop, compact, repair); absent where never
    written             of oddities: what an activation share is a share of
    num_candidates      of oddities: latents that pass the floors min_active, min_documents and max_frequency
    site_b, run_b       of a comparison: the second store's; what else it has is listed in `compare`

and the question's own words: document, where, latent, order, smallest, a, b, column, per_token, context, kind,
match, level, resamples.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from gradsae_fast.method import SIGN, influence_unit
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.units import score_unit
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

_TEXT = (
    "ranking",
    "site",
    "objective",
    "by",
    "unit",
    "influence_unit",
    "sign",
    "run",
    "where",
    "order",
    "a",
    "b",
    "column",
    "polarity",
    "kind",
    "written",
    "match",
    "level",
    "site_b",
    "run_b",
)


def first_k(score: Array, tie: Array, k: int | None, *, smallest: bool = False) -> Array:
    """Return the rows in order of score, largest first (or smallest first); ties by the smaller `tie`, NaN last."""
    return np.lexsort((tie, score if smallest else -score))[:k]


def build_table(
    columns: Mapping[str, Any], *, ranking: str, store: ScoreStore, question: Question, **facts: Any
) -> pa.Table:
    """Make the Arrow table; a `rank` column counted from 1 comes first."""
    num_rows = len(next(iter(columns.values())))
    arrays: dict[str, Any] = {"rank": np.arange(1, num_rows + 1, dtype=np.int64), **columns}
    described = {
        "ranking": ranking,
        "site": question.site,
        "objective": question.objective,
        "by": question.by,
        "unit": score_unit(question.objective, question.by, per_token=bool(facts.get("per_token"))),
        "influence_unit": influence_unit(question.objective),
        "sign": SIGN,
        "includes_special": question.include_special,
        "k": question.k,
        "polarity": question.polarity,
        "exact_dense": None if question.exact is None else question.exact.store.share,
        "run": identity_digest(store),
        "revisions": store.num_revisions or None,
        **facts,
    }
    encoded = {key: _encode(key, value) for key, value in described.items() if value is not None or key == "k"}
    return pa.table(arrays).replace_schema_metadata(encoded)


def query_of(table: pa.Table) -> dict[str, Any]:
    """Read back what a ranking table's schema metadata says, as Python values."""
    metadata = table.schema.metadata or {}
    decoded = {key.decode(): value.decode() for key, value in metadata.items()}
    return {key: value if key in _TEXT else json.loads(value) for key, value in decoded.items()}


def identity_digest(store: ScoreStore) -> str:
    """Digest of everything that the scores depend on: sha256 of the identity's canonical JSON, 16 hex digits.

    Of a store of several generations, that of the list of their identities.
    """
    identities = [generation.identity for generation in store.generations]
    scored = identities if len(identities) > 1 else identities[0]
    canonical = json.dumps(scored, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _encode(key: str, value: Any) -> str:
    text = value if key in _TEXT else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # lone surrogates, which Arrow cannot hold, become "?"
