"""The verb `gradsae index`: what it says, and that rankings use what it wrote."""

from pathlib import Path

from gradsae_fast import open_scores
from tests.ranking.conftest import make_world, write_store
from tests.terminal import gradsae


def test_the_index_is_made_and_said_to_be(tmp_path: Path) -> None:
    store = tmp_path / "scores.gradsae"
    write_store(store, make_world())
    assert open_scores(store).index is None
    found = gradsae("index", store)
    index = open_scores(store).index
    assert index is not None
    assert found.status == 0
    assert found.out.startswith(
        f"wrote the index of 5 segments with 16 documents: {index.num_bytes:,} bytes in {store}/index;"
    )
    assert "none, as the store is small enough to be read" in found.out


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    found = gradsae("index", tmp_path)
    assert (found.status, found.out) == (1, "")
    assert "is not a store" in found.err
