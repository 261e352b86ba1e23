import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.plan import make_plan, plan_from_json, plan_key, plan_segments, plan_to_json
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.corpus.tokens import tokenizer_digest
from gradsae_fast.errors import CorpusError
from gradsae_fast.records import Segment

RULES = TokenRules(prepend_bos=True, bos_id=0)
LENGTHS = st.lists(st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 30_000)), max_size=60)


def by_hand(lengths: Sequence[int], target: int) -> list[list[int]]:
    """The rule of the plan, one document at a time: cut where the next document would exceed the target."""
    segments: list[list[int]] = []
    for length in lengths:
        if segments and (length == 0 or sum(segments[-1]) == 0 or sum(segments[-1]) + length <= target):
            segments[-1].append(length)
        else:
            segments.append([length])
    return segments


def expected(lengths: Sequence[int]) -> list[list[int]]:
    target = min(max(sum(lengths) // 64, 4096), 262_144)
    while len(by_hand(lengths, target)) < min(8, sum(length > 0 for length in lengths)):
        target //= 2
    return by_hand(lengths, target)


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS)
def test_segments_follow_the_rule_one_document_at_a_time(lengths: list[int]) -> None:
    segments = plan_segments(lengths)
    assert [(segment.num_documents, segment.num_tokens) for segment in segments] == [
        (len(run), sum(run)) for run in (expected(lengths) if lengths else [])
    ]
    firsts = [0, *itertools.accumulate(segment.num_documents for segment in segments)]
    assert [segment.first_document for segment in segments] == firsts[:-1]
    assert [segment.index for segment in segments] == list(range(len(segments)))


def test_a_long_document_is_a_segment_of_its_own() -> None:
    lengths = [10, 0, 100_000, 0, 10, *[1000] * 30]
    assert [s.num_documents for s in plan_segments(lengths)][:3] == [2, 2, 5]


def test_the_target_is_a_64th_of_the_tokens_between_its_limits() -> None:
    assert {s.num_tokens for s in plan_segments([100] * 10_000)[:-1]} == {15_600}
    assert {s.num_tokens for s in plan_segments([1000] * 100)[:-1]} == {4_000}
    assert {s.num_tokens for s in plan_segments([1000] * 40_000)[:-1]} == {262_000}
    assert len(plan_segments([1] * 8)) == 8
    assert len(plan_segments([5] * 3)) == 3


def test_documents_without_tokens_belong_to_a_neighbour() -> None:
    assert [s.num_documents for s in plan_segments([0, 0, 5, 0, 5, 0, 0])] == [4, 3]
    assert plan_segments([0, 0]) == (Segment(index=0, first_document=0, num_documents=2, num_tokens=0),)
    assert plan_segments([]) == ()


def test_a_plan_counts_documents_and_tokens_with_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    plan = make_plan(open_corpus(["zq", "", "zqzq"]), tokenizer, RULES)
    assert (plan.num_documents, plan.num_tokens) == (3, 3 + 0 + 5)
    assert [(s.first_document, s.num_documents, s.num_tokens) for s in plan.segments] == [(0, 2, 3), (2, 1, 5)]


def test_the_digest_follows_corpus_tokenizer_and_rules(
    tokenizer: PreTrainedTokenizerFast, tokenizer_adding_bos: PreTrainedTokenizerFast
) -> None:
    texts = ["the union", "the people"]
    digest = make_plan(open_corpus(texts), tokenizer, RULES).digest
    assert make_plan(open_corpus(iter(texts)), tokenizer, RULES).digest == digest
    others = [
        make_plan(open_corpus(["the onion", "the people"]), tokenizer, RULES).digest,
        make_plan(open_corpus(texts), tokenizer_adding_bos, RULES).digest,
        make_plan(open_corpus(texts), tokenizer, TokenRules(prepend_bos=False, bos_id=0)).digest,
    ]
    assert len({digest, *others}) == 4


def test_a_key_is_known_without_counting_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    manifest, digest = open_corpus(["a", "b"]).manifest(), tokenizer_digest(tokenizer)
    key = plan_key(manifest, digest, RULES)
    assert plan_key(open_corpus(["a", "b"]).manifest(), digest, RULES) == key
    assert plan_key(open_corpus(["a", "c"]).manifest(), digest, RULES) != key
    assert plan_key(manifest, "other", RULES) != key


def test_a_plan_survives_json(tokenizer: PreTrainedTokenizerFast) -> None:
    plan = make_plan(open_corpus([f"the people {i}" for i in range(20)]), tokenizer, RULES)
    written = json.loads(json.dumps(plan_to_json(plan)))
    assert plan_from_json(written) == plan
    written["segments"][0][1] += 1
    with pytest.raises(CorpusError, match="the plan is damaged"):
        plan_from_json(written)


def test_keys_that_occur_twice_are_refused_with_both_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"id": key, "text": "a"} for key in ("x", "y", "z", "y")]
    with pytest.raises(CorpusError, match=r"key 'y' twice: rows, row 1 .* and rows, row 3 "):
        make_plan(open_corpus(rows), tokenizer, RULES)


def test_a_corpus_without_documents_or_tokens_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CorpusError, match="empty corpus"):
        make_plan(open_corpus([]), tokenizer, RULES)
    with pytest.raises(CorpusError, match="got 2 documents without a single token"):
        make_plan(open_corpus(["", ""]), tokenizer, RULES)
