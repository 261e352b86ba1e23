from typing import TYPE_CHECKING

import numpy as np
import pytest

from gradsae_fast.ranking import rank_tokens
from gradsae_fast.ranking.context import SegmentText, TokenText

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE = "model.layers.3"


@pytest.fixture
def world(make_store: "MakeStore") -> "World":
    """The first document is `<bos> one two <added> four <added>`; added tokens have no characters."""
    world = make_store.world(segment_documents=(2,))
    world.words[:6] = ["<bos>", "one", "two", "<bos>", "four", "<bos>"]
    world.document_N[:6], world.document_N[6:] = 0, 1
    world.position_N[:] = [*range(6), *range(len(world.words) - 6)]
    return world


def test_added_tokens_stand_between_the_characters_of_their_neighbours(make_store: "MakeStore", world: "World") -> None:
    text = SegmentText(make_store(world).segments[0], ["<s>"] * 40)
    assert text.around(0, 3, 1) == TokenText(token="<s>", before="two", after=" four")
    assert text.around(0, 5, 10) == TokenText(token="<s>", before="one two four", after="")
    assert text.around(0, 0, 2) == TokenText(token="<s>", before="", after="one two")


def test_an_added_token_among_the_neighbours_takes_its_place_but_no_text(
    make_store: "MakeStore", world: "World"
) -> None:
    text = SegmentText(make_store(world).segments[0], None)
    assert text.around(0, 4, 1) == TokenText(token="four", before="", after="")
    assert text.around(0, 4, 2) == TokenText(token="four", before="two ", after="")
    assert text.around(0, 2, 2) == TokenText(token="two", before="one ", after=" four")


def test_the_neighbouring_document_is_never_shown(make_store: "MakeStore", world: "World") -> None:
    text = SegmentText(make_store(world).segments[0], None)
    shown = text.around(1, 7, 100)
    words = [word for word in world.words[6:] if word != "<bos>"]
    assert shown.before + shown.token + shown.after == " ".join(words)
    assert np.count_nonzero(world.document_N) == len(words) + 1


def test_a_token_without_text_and_name_is_shown_by_its_number(make_store: "MakeStore", world: "World") -> None:
    assert SegmentText(make_store(world).segments[0], None).around(0, 3, 0).token == "<3>"
    assert SegmentText(make_store(world).segments[0], ["a"]).around(0, 3, 0).token == "<3>"


def test_a_table_of_tokens_shows_the_same_text(make_store: "MakeStore", world: "World") -> None:
    world.activation[SITE][:] = 0
    world.activation[SITE][2, 1] = 1
    world.mask_N[:] = 0
    row = rank_tokens(make_store(world), latent=1, context=1).to_pylist()[0]
    assert (row["before"], row["token"], row["after"]) == ("one ", "two", "")
