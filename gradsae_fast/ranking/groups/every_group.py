"""Latents that mark each group of documents: every value of a metadata column against all other documents.

Memory, beside the samples (see `evidence`): some 160 bytes for each group and latent, 0.5 GB for 50 groups of 65,536.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table
from gradsae_fast.ranking.columns import text_column
from gradsae_fast.ranking.conditions import holds_numbers, text_of
from gradsae_fast.ranking.document_columns import read_columns
from gradsae_fast.ranking.groups.differences import OF_SPREAD, ORDERS, Pair, find_differences
from gradsae_fast.ranking.groups.evidence import Evidence, gather, members_of
from gradsae_fast.ranking.groups.moments import merged
from gradsae_fast.ranking.question import Question, one_of, resolve
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

MAX_GROUPS = 50


def contrast_groups(
    store: ScoreStore,
    *,
    column: str,
    by: str = "influence",
    k: int | None = 20,
    order: str = "a",
    site: str | None = None,
    objective: str | None = None,
    include_special: bool | None = None,
    exact_dense: bool = False,
) -> pa.Table:
    """Compare the documents of each value of a column with all others, those without a value among them.

    A group's rows are those of `contrast` with a condition for the value as `a` and no `b`, but for q, which is
    corrected for the latents of all groups together.

    Args:
        column: a metadata column, or `key` or `num_tokens` (see `document_columns`), of at most 50 values.
        k: rows for each group.
        order: as in `contrast`; "a" begins with what a group has more of than the others.
        store, by, site, objective, include_special, exact_dense: see `contrast`.

    Returns:
        rank (from 1 in each group), group (the value, as text), then the columns of `contrast`, where a is the group
        and b all others; groups in ascending order. A value whose documents have no counted token has no rows; the
        metadata's `groups` has it, with 0 documents.

    Raises:
        QueryError: the column is unknown or has too many values, only one group has documents and there are no others,
            all groups have one document and the order needs a spread, or as in `contrast`.
    """
    question = resolve(
        store, by=by, k=k, site=site, objective=objective, include_special=include_special, exact_dense=exact_dense
    )
    one_of("order", order, ORDERS)
    return _answer(store, question, column, order)


def _answer(store: ScoreStore, question: Question, column: str, order: str) -> pa.Table:
    values, member_GM = _groups(store, column)
    evidence = gather(store, [members_of(store, member_M) for member_M in member_GM], question)
    num_documents = [group.num_documents for group in evidence.moments[: len(values)]]
    pairs = {value: _against_the_rest(evidence, g) for g, value in enumerate(values) if num_documents[g]}
    _check(pairs, column, order)
    found, num_compared = find_differences(evidence, list(pairs.values()), order=order, k=question.k)
    lengths = [len(of_group.latent) for of_group in found]
    columns: dict[str, Any] = {
        "rank": np.concatenate([np.arange(1, length + 1) for length in lengths]),
        "group": text_column(list(pairs)).take(np.repeat(np.arange(len(pairs)), lengths)),
        "latent": np.concatenate([of_group.latent for of_group in found]),
    }
    for name in found[0].columns:
        columns[name] = np.concatenate([of_group.columns[name] for of_group in found])
    return build_table(
        columns,
        ranking="groups",
        store=store,
        question=question,
        per_token=True,
        order=order,
        column=column,
        groups=dict(zip(text_column(values).to_pylist(), num_documents, strict=True)),
        num_documents=evidence.member_GS.shape[1],
        num_tokens=sum(group.num_tokens for group in evidence.moments),
        num_compared=num_compared,
    )


def _groups(store: ScoreStore, column: str) -> tuple[list[str], Array]:
    """Return a column's G values as text, ascending, and who has which, bool [G + 1, M]: last, who has none."""
    values = read_columns(store, [column])[column]
    if not holds_numbers(values):
        values = [None if value is None else text_of(value) for value in values]
    distinct = sorted({value for value in values if value is not None and value == value})  # NaN is no value
    if not 0 < len(distinct) <= MAX_GROUPS:
        raise QueryError(
            f"the metadata column {column!r} has {len(distinct)} values; expected 1 to {MAX_GROUPS}, a group for each; "
            "choose another column, or compare two groups that conditions describe, like year>=1950 with year<1950"
        )
    number = {value: place for place, value in enumerate(distinct)}
    group_M = np.array([number.get(value, len(distinct)) for value in values])
    return [str(value) for value in distinct], group_M == np.arange(len(distinct) + 1)[:, None]


def _against_the_rest(evidence: Evidence, group: int) -> Pair:
    others = [moments for g, moments in enumerate(evidence.moments) if g != group]
    is_a_S = evidence.member_GS[group]
    return Pair(a=evidence.moments[group], b=merged(others), is_a_S=is_a_S, is_b_S=~is_a_S)


def _check(pairs: Mapping[str, Pair], column: str, order: str) -> None:
    if not pairs:
        raise QueryError(
            f"no document with a value of {column!r} has a counted token; choose another column, or count masked tokens"
        )
    if order in OF_SPREAD and all(pair.a.num_documents == 1 for pair in pairs.values()):
        raise QueryError(
            f"every group of {column!r} has one document with a counted token, and so no spread, which the order "
            f"{order!r} needs; order by difference or auroc, or choose another column"
        )
    for value, pair in pairs.items():
        if pair.b.num_documents == 0:
            raise QueryError(
                f"every document with a counted token has {column} = {value!r}: there is nothing to compare with; "
                "choose another column"
            )
