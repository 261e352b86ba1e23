import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from gradsae_fast.corpus import segments as segments_module
from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.plan import make_plan
from gradsae_fast.corpus.read import Corpus, open_corpus
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.errors import CorpusError

RULES = TokenRules(prepend_bos=True, bos_id=0)
TEXTS = ["", *(f"the people {'zq' * (i % 5)} {i}" for i in range(30)), ""]


@pytest.fixture
def corpus() -> Corpus:
    return open_corpus(TEXTS)


def test_segments_together_are_the_tokenised_corpus(tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> None:
    plan = make_plan(corpus, tokenizer, RULES)
    pairs = list(read_segments(corpus, plan, tokenizer, RULES))
    assert [segment for segment, _ in pairs] == list(plan.segments)
    assert len(pairs) >= 8
    together = [document for _, documents in pairs for document in documents]
    for document, alone in zip(together, tokenize(corpus, tokenizer, RULES), strict=True):
        assert document.index == alone.index
        assert document.document == alone.document
        assert np.array_equal(document.token_ids, alone.token_ids)


def test_skipped_segments_are_not_tokenised_and_change_nothing_else(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(corpus, tokenizer, RULES)
    whole = list(read_segments(corpus, plan, tokenizer, RULES))
    firsts: list[int] = []

    def counting(*arguments: object) -> object:
        firsts.append(arguments[3])  # type: ignore[arg-type]
        return tokenize(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(segments_module, "tokenize", counting)
    skip = frozenset(range(len(plan.segments))) - {2, 5}
    some = list(read_segments(corpus, plan, tokenizer, RULES, skip))
    assert [segment.index for segment, _ in some] == [2, 5]
    assert firsts == [plan.segments[2].first_document, plan.segments[5].first_document]
    for segment, documents in some:
        expected = whole[segment.index][1]
        assert [d.token_ids.tolist() for d in documents] == [d.token_ids.tolist() for d in expected]
        assert [d.index for d in documents] == [d.index for d in expected]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (TEXTS[:-3], "got 29 documents, expected 32"),
        ([*TEXTS, "more"], "got more documents than the 32"),
        ([*TEXTS[:10], TEXTS[10] + "zq", *TEXTS[11:]], r"tokens in segment \d .*expected"),
    ],
)
def test_a_corpus_that_changed_is_refused(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus, texts: list[str], message: str
) -> None:
    plan = make_plan(corpus, tokenizer, RULES)
    with pytest.raises(CorpusError, match=rf"the corpus changed since it was planned: .*{message}"):
        list(read_segments(open_corpus(texts), plan, tokenizer, RULES))
