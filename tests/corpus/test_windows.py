from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.errors import ConfigError
from gradsae_fast.records import Document, TokenDocument, Window


def document_of(num_tokens: int, num_bos: int = 0) -> TokenDocument:
    """Token t of the document has the id 100 + t; a BOS has the id 0."""
    ids = np.arange(100, 100 + num_tokens, dtype=np.int32)
    ids[:num_bos] = 0
    zeros = np.zeros(num_tokens, np.int32)
    return TokenDocument(
        document=Document(key="k", text="", source="s", row=0, metadata={}),
        index=0,
        token_ids=ids,
        char_start=zeros,
        char_end=zeros,
        special=zeros.astype(bool),
        num_bos=num_bos if num_tokens else 0,
    )


SHAPES = st.tuples(st.integers(0, 200), st.integers(0, 1), st.integers(0, 12), st.integers(1, 20))


@settings(deadline=None, max_examples=50)
@given(shape=SHAPES)
def test_every_token_is_new_in_exactly_one_window(shape: tuple[int, int, int, int]) -> None:
    num_tokens, num_bos, overlap, room = shape
    document = document_of(num_tokens, num_bos)
    length = overlap + num_bos + room
    windows = cut_windows(document, 3, context_length=length, overlap=overlap)
    scored = [window.token_ids[window.num_context :] for window in windows]
    assert np.array_equal(np.concatenate([np.zeros(0, np.int32), *scored]), document.token_ids)
    for window in windows:
        assert 0 < window.num_scored <= len(window.token_ids) <= length
        assert window.slot == 3
        stop = window.first_position + window.num_scored
        assert np.array_equal(window.token_ids[window.num_context :], document.token_ids[window.first_position : stop])


@settings(deadline=None, max_examples=50)
@given(shape=SHAPES)
def test_later_windows_begin_with_bos_and_the_tokens_before(shape: tuple[int, int, int, int]) -> None:
    num_tokens, num_bos, overlap, room = shape
    document = document_of(num_tokens, num_bos)
    windows = cut_windows(document, 0, context_length=overlap + num_bos + room, overlap=overlap)
    for before, window in pairwise(windows):
        assert len(before.token_ids) == overlap + num_bos + room
        first = window.first_position
        assert window.num_context == num_bos + overlap
        assert window.token_ids[:num_bos].tolist() == [0] * num_bos
        context = window.token_ids[num_bos : window.num_context]
        assert np.array_equal(context, document.token_ids[first - overlap : first])
        assert window.token_ids.tolist().count(0) == num_bos
    assert all(window.num_context == 0 for window in windows[:1])


def test_windows_of_a_small_document_by_hand() -> None:
    windows = cut_windows(document_of(8, num_bos=1), 0, context_length=5, overlap=2)
    assert [window.token_ids.tolist() for window in windows] == [
        [0, 101, 102, 103, 104],
        [0, 103, 104, 105, 106],
        [0, 105, 106, 107],
    ]
    assert [(w.first_position, w.num_context, w.num_scored) for w in windows] == [(0, 0, 5), (5, 3, 2), (7, 3, 1)]


def test_an_empty_document_has_no_windows() -> None:
    assert cut_windows(document_of(0), 0, context_length=4, overlap=1) == []


@pytest.mark.parametrize(("length", "overlap", "num_bos"), [(4, 4, 0), (4, 3, 1), (1, 0, 1), (0, 0, 0), (4, -1, 0)])
def test_windows_without_room_for_a_new_token_are_refused(length: int, overlap: int, num_bos: int) -> None:
    with pytest.raises(ConfigError, match=r"expected 0 <= overlap and overlap \+ BOS < context length"):
        cut_windows(document_of(3, num_bos), 0, context_length=length, overlap=overlap)


def windows_of(lengths: list[int]) -> list[Window]:
    return [
        cut_windows(document_of(length), slot, context_length=1000, overlap=0)[0] for slot, length in enumerate(lengths)
    ]


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200))
def test_batches_hold_every_window_once_under_the_budget(lengths: list[int], budget: int) -> None:
    windows = windows_of(lengths)
    batches = batch_windows(windows, tokens_per_batch=budget, pad_id=7)
    order = [window.slot for batch in batches for window in batch.windows]
    assert order == sorted(range(len(lengths)), key=lambda slot: (-lengths[slot], slot))
    for batch in batches:
        assert batch.token_ids_BT.dtype == np.int64
        assert batch.token_ids_BT.size <= budget or len(batch.windows) == 1
        assert batch.token_ids_BT.shape == (len(batch.windows), max(batch.lengths))
        for window, row in zip(batch.windows, batch.token_ids_BT, strict=True):
            assert np.array_equal(row[: len(window.token_ids)], window.token_ids)
            assert np.all(row[len(window.token_ids) :] == 7)
    for batch, following in pairwise(batches):
        rows = len(batch.windows) + 1
        assert rows * max(batch.lengths) > budget, "the next window would have fitted"
        assert max(following.lengths) <= min(batch.lengths)


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least 1"):
        batch_windows([], tokens_per_batch=0)
