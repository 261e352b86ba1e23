"""Two stores over one corpus: two SAEs, two layers, two checkpoints, or two sites of one store.

The same SAE in both (`match="same"`): latent c of A is latent c of B, and the matched documents are pairs of samples,
the mean score per counted token in A and in B. Many latents are tested at once: read q, not p.

Different SAEs (`match="best"`): for each of A's first latents, the latent of B whose scores go along with its own most
closely: Pearson's r over the tokens that count in both, or over documents. Prefer tokens: with few documents some of
thousands of latents agree by chance. r over tokens takes no account of the order of tokens, and is that of single
scores; r over documents is that of means. r says nothing about size: a latent and its double agree perfectly.

The answer's metadata says `level`, `site_b` and `run_b` next to A's `site` and `run`; `num_documents` and `num_tokens`
that were matched (A's tokens), `num_only_a`, `num_only_b`, and `num_unequal`: matched documents with another number of
counted tokens in A than in B; `same_corpus`: whether both runs read the same plan with the same windows; `same_sae`.
For match="same" also `spearman` of the two scores over latents; for match="best" `mean_correlation`, `num_mutual` and
`chance_correlation`: what the best of as many unrelated latents would reach if scores were normal. A match that is not
well above it is none.

Memory: one segment of documents, or one run of tokens, of each store, and 8 bytes for each of 2^23 pairs of a listed
latent and one of the other store. Where there are more pairs (lists of more than 128 in SAEs of 65,536 latents) the
stores are read once for every 2^23 of them, and as often again to see which matches are mutual.
"""

from typing import Any

import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table, identity_digest
from gradsae_fast.ranking.compare.counterparts import compare_counterparts
from gradsae_fast.ranking.compare.matching import Matching, Side, match_documents
from gradsae_fast.ranking.compare.paired import compare_paired
from gradsae_fast.ranking.question import one_of, resolve
from gradsae_fast.store import ScoreStore

MATCHES = ("best", "same")
LEVELS = ("documents", "tokens")
MIN_DOCUMENTS = 3


def compare_stores(
    a: ScoreStore,
    b: ScoreStore,
    *,
    by: str = "influence",
    k: int | None = 20,
    match: str = "best",
    level: str | None = None,
    where: str | None = None,
    site_a: str | None = None,
    site_b: str | None = None,
    objective: str | None = None,
    include_special: bool | None = None,
) -> pa.Table:
    """Compare the latents of two stores over the documents that both have, matched by key.

    Args:
        a, b: two open stores, or one twice with two sites.
        match: same: latents of one SAE, by number; best: for each of A's first k latents the one of B that correlates
            most with it.
        level: of match = "best": correlate over tokens or documents; None: tokens where both stores have the same
            ones, else documents. The metadata's `level` says which.
        where: a condition on document metadata, answered by A.
        site_a, site_b: needed where a store has several.
        by, k, objective, include_special: what every question has, see `question.resolve`; asked of both stores.

    Returns:
        Scores are means over the matched documents of the score per counted token; a rank is among the latents that
        fire in the matched documents, null for one that does not. For the metadata see the module's docstring.
        best, in the order of A's ranking: rank, latent, match (of B; null where the latent's scores are all the same),
        correlation, runner_up, runner_up_correlation, mutual (no latent of A is closer to the match), score_a, score_b,
        rank_b.
        same, largest |difference| first: rank, latent, difference (score_a - score_b), score_a, score_b, t
        (paired, over documents), p (two-sided), q (Benjamini and Hochberg, over all latents that fire in one of the
        stores), correlation (over documents), rank_a, rank_b, num_active_documents_a, num_active_documents_b. t, p, q
        are NaN where no document's difference differs from the others'.

    Raises:
        QueryError: no document, or for a statistic over documents fewer than 3, are in both; the SAEs differ in their
            number of latents for match = "same"; the tokens differ for level = "tokens"; a name is unknown.
    """
    one_of("match", match, MATCHES)
    asked: dict[str, Any] = {"by": by, "k": k, "objective": objective, "include_special": include_special}
    side_a, side_b = _side("a", a, site_a, asked), _side("b", b, site_b, asked)
    _check_alike(side_a, side_b, match)
    matching = match_documents(side_a, side_b, where)
    level = _level(matching, match, level)
    columns, found = compare_paired(matching, k) if match == "same" else compare_counterparts(matching, level)
    return build_table(
        columns,
        ranking="comparison",
        store=a,
        question=matching.a.question,
        per_token=True,
        match=match,
        level=level,
        where=where,
        **_facts(matching),
        **found,
    )


def _side(name: str, store: ScoreStore, site: str | None, asked: dict[str, Any]) -> Side:
    if site is None and len(store.sites) > 1:
        known = ", ".join(map(repr, store.sites))
        raise QueryError(
            f"store {name}, {store.path}, has {len(store.sites)} sites; say which with site_{name}=: {known}"
        )
    return Side(store=store, question=resolve(store, site=site, **asked))


def _check_alike(a: Side, b: Side, match: str) -> None:
    """Raise QueryError where the two stores do not answer one and the same question."""
    for what, of_a, of_b in (
        ("objective", a.question.objective, b.question.objective),
        ("include_special", a.question.include_special, b.question.include_special),
    ):
        if of_a != of_b:
            raise QueryError(
                f"store a would answer with {what} {of_a!r}, store b with {of_b!r}; say which with {what}="
            )
    if match == "same" and a.question.num_latents != b.question.num_latents:
        raise QueryError(
            f"match = 'same' is for one SAE in both stores; got {a.question.num_latents} latents at "
            f"{a.question.site!r} of a and {b.question.num_latents} at {b.question.site!r} of b; use match = 'best'"
        )


def _level(matching: Matching, match: str, level: str | None) -> str:
    """Decide whether tokens or documents are the samples; QueryError where they are too few or not the same."""
    if level is not None:
        one_of("level", level, LEVELS)
    if match == "same" and level == "tokens":
        raise QueryError("match = 'same' tests differences over documents; leave level out, or use match = 'best'")
    unlike = None if match == "same" or level == "documents" else matching.unlike_document()
    if level == "tokens" and unlike is not None:
        raise QueryError(
            f"the two stores have other tokens in the document {unlike!r} (another tokenizer, BOS or text); expected "
            "the same ones: use level = 'documents'"
        )
    if match == "best" and level != "documents" and unlike is None:
        return "tokens"
    if matching.num_documents < MIN_DOCUMENTS:
        raise QueryError(
            f"{matching.num_documents} documents with a counted token are in both stores; expected {MIN_DOCUMENTS} or "
            "more for statistics over documents"
        )
    return "documents"


def _corpora(store: ScoreStore) -> list[Any]:
    return [generation.identity.get("corpus") for generation in store.generations]


def _facts(matching: Matching) -> dict[str, Any]:
    a, b = matching.a, matching.b
    saes = [side.store.identity.get("saes", {}).get(side.question.site, {}).get("digest") for side in (a, b)]
    return {
        "site_b": b.question.site,
        "run_b": identity_digest(b.store),
        "num_documents": matching.num_documents,
        "num_tokens": matching.num_tokens,
        "num_only_a": matching.num_only_a,
        "num_only_b": matching.num_only_b,
        "num_unequal": matching.num_unequal,
        "same_corpus": _corpora(a.store) == _corpora(b.store),
        "same_sae": None if None in saes else saes[0] == saes[1],
    }
