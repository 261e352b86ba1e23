import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gradsae_fast.corpus import tokens as tokens_module
from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.corpus.tokens import special_ids, tokenize, tokenizer_digest
from gradsae_fast.errors import CorpusError
from gradsae_fast.records import Document, TokenDocument

BOS = TokenRules(prepend_bos=True, bos_id=0)
NO_BOS = TokenRules(prepend_bos=False, bos_id=0)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


def one(text: str, tokenizer: PreTrainedTokenizerFast, rules: TokenRules, answer: str | None = None) -> TokenDocument:
    document = Document(key="k", text=text, source="s", row=0, answer=answer, metadata={})
    (tokens,) = tokenize([document], tokenizer, rules)
    return tokens


def test_a_bos_of_id_0_is_put_in_front_once(tokenizer: PreTrainedTokenizerFast) -> None:
    plain, with_bos = one("the union", tokenizer, NO_BOS), one("the union", tokenizer, BOS)
    assert plain.num_bos == 0
    assert not plain.special.any()
    assert with_bos.num_bos == 1
    assert with_bos.token_ids.tolist() == [0, *plain.token_ids.tolist()]
    assert with_bos.special.tolist() == [True] + [False] * plain.num_tokens
    assert (with_bos.char_start[0], with_bos.char_end[0]) == (0, 0)
    assert with_bos.char_end[1:].tolist() == plain.char_end.tolist()
    assert with_bos.token_ids.dtype == with_bos.char_start.dtype == with_bos.char_end.dtype == np.int32


def test_a_patch_takes_the_place_of_the_text_between_bos_and_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"q": "a the union", "other": "a union the", "a": " yes"}
    columns = {"prompt_column": "q", "answer_column": "a", "patch_column": "other", "metadata_columns": ()}
    (document,) = tokenize(open_corpus([row], **columns), tokenizer, BOS)  # type: ignore[arg-type]
    (patched,) = tokenize(open_corpus([row | {"q": "a union the"}], **columns), tokenizer, BOS)  # type: ignore[arg-type]
    assert document.patch_ids is not None
    assert document.patch_ids.tolist() == patched.token_ids.tolist()
    assert document.patch_ids.tolist() != document.token_ids.tolist()
    assert document.document.metadata == {}


def test_a_patch_of_another_length_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = open_corpus([{"id": "one", "text": "the union", "other": "the the the union"}], patch_column="other")
    with pytest.raises(CorpusError, match=r"'one': got a patch text of 4 tokens, expected 2 .* change the row"):
        list(tokenize(corpus, tokenizer, BOS))


def test_a_text_that_spells_out_the_bos_keeps_that_one(tokenizer: PreTrainedTokenizerFast) -> None:
    spelled, added = one("<bos>the union", tokenizer, BOS), one("the union", tokenizer, BOS)
    assert spelled.token_ids.tolist() == added.token_ids.tolist()
    assert spelled.num_bos == 1
    assert spelled.special.tolist() == added.special.tolist()
    assert (spelled.char_start[0], spelled.char_end[0]) == (0, 5)


def test_a_tokenizer_that_adds_bos_by_itself_does_not_double_it(tokenizer_adding_bos: PreTrainedTokenizerFast) -> None:
    assert one("the union", tokenizer_adding_bos, BOS).token_ids.tolist().count(0) == 1
    assert one("the union", tokenizer_adding_bos, NO_BOS).token_ids.tolist().count(0) == 0


def test_special_tokens_are_masked_anywhere_named_or_not(tokenizer: PreTrainedTokenizerFast) -> None:
    user = tokenizer.convert_tokens_to_ids("<user>")
    assert special_ids(tokenizer) == {0, 1, user}
    document = one("the <user> of<eos><bos>", tokenizer, NO_BOS)
    marked = document.token_ids[document.special].tolist()
    assert marked == [user, 1, 0]
    union = one("the", tokenizer, NO_BOS).token_ids[0]
    masked = TokenRules(prepend_bos=False, bos_id=0, masked_ids=frozenset({int(union)}))
    assert one("the people", tokenizer, masked).special[0]


def test_empty_texts_have_no_tokens_not_even_a_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    document = one("", tokenizer, BOS)
    assert (document.num_tokens, document.num_bos) == (0, 0)
    assert document.char_start.shape == document.special.shape == (0,)
    assert one(" \n", tokenizer, BOS).num_tokens > 1


@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
def test_offsets_slice_back_to_the_decoded_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    document = one(text, tokenizer, NO_BOS)
    pieces = [text[a:b] for a, b in zip(document.char_start, document.char_end, strict=True)]
    decoded = [tokenizer.decode([token]) for token in document.token_ids]
    for piece, token in zip(pieces, decoded, strict=True):
        # A token that holds part of a character decodes to a replacement mark, unless the text has one itself.
        assert piece == token or "\ufffd" in token
    assert sorted(set("".join(pieces))) == sorted(set(text))
    assert np.all(np.diff(document.char_start) >= 0)


@settings(deadline=None, max_examples=50)
@given(prompt=TEXTS, answer=TEXTS.filter(bool), bos=st.booleans())
def test_an_answer_begins_where_its_characters_begin(
    tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str, bos: bool
) -> None:
    document = one(prompt, tokenizer, BOS if bos else NO_BOS, answer)
    start = document.answer_start
    assert start is not None
    alone = one(answer, tokenizer, NO_BOS)
    assert document.token_ids[start:].tolist() == alone.token_ids.tolist()
    assert document.char_start[start:].tolist() == (alone.char_start + len(prompt)).tolist()
    assert document.char_end[:start].max(initial=0) == len(prompt)
    assert document.document.full_text[document.char_start[start] :] == answer


def test_contrast_texts_become_their_first_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": "a", "y": "the states", "n": "of"}, {"text": "b", "y": " union", "n": "zebra"}]
    documents = [*open_corpus(rows, contrast_columns=("y", "n"))]
    plain = Document(key="k", text="c", source="s", row=0, metadata={})
    first, none, second = tokenize([documents[0], plain, documents[1]], tokenizer, NO_BOS)

    def token(text: str) -> int:
        return int(one(text, tokenizer, NO_BOS).token_ids[0])

    assert first.contrast_ids == (token("the states"), token("of"))
    assert second.contrast_ids == (token(" union"), token("zebra"))
    assert none.contrast_ids is None


@pytest.mark.parametrize(("contrast", "message"), [(("", "a"), "has no tokens"), (("zoo", "zebra"), "the same token")])
def test_contrasts_that_cannot_be_told_apart_are_refused(
    tokenizer: PreTrainedTokenizerFast, contrast: tuple[str, str], message: str
) -> None:
    document = Document(key="k7", text="t", source="s", row=0, contrast=contrast, metadata={})
    with pytest.raises(CorpusError, match=rf"document 'k7': .*{message}"):
        list(tokenize([document], tokenizer, NO_BOS))


def test_batches_do_not_change_the_tokens(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus([f"the people {i} " * (i % 7) for i in range(40)])
    whole = list(tokenize(corpus, tokenizer, BOS, first_index=5))
    monkeypatch.setattr(tokens_module, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 50)
    small = list(tokenize(corpus, tokenizer, BOS, first_index=5))
    assert [document.index for document in whole] == [document.index for document in small] == list(range(5, 45))
    for a, b in zip(whole, small, strict=True):
        assert np.array_equal(a.token_ids, b.token_ids)
        assert a.document.key == b.document.key


def test_texts_beyond_the_tokenizers_length_come_whole_and_without_warning(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer.deprecation_warnings.clear()  # it warns once only
    assert one("zq" * 100, tokenizer, NO_BOS).num_tokens == 200 > tokenizer.model_max_length
    assert caplog.text == ""


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(CorpusError, match=r"slow tokenizer Slow.*expected a fast one"):
        list(tokenize([], Slow(), NO_BOS))  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match="slow tokenizer"):
        tokenizer_digest(Slow())  # type: ignore[arg-type]


def test_the_digest_follows_the_definition_and_not_the_last_call(
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_without_bos: PreTrainedTokenizerFast,
    tokenizer_adding_bos: PreTrainedTokenizerFast,
) -> None:
    before = tokenizer_digest(tokenizer)
    tokenizer("the people", truncation=True, max_length=2)
    assert '"max_length": 2' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["truncation"])
    assert tokenizer_digest(tokenizer) == before
    others = {tokenizer_digest(tokenizer_without_bos), tokenizer_digest(tokenizer_adding_bos)}
    assert len(others | {before}) == 3
