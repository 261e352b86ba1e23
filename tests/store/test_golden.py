"""A store that release 0.1.0 wrote in format version 1: what that release answered is answered still.

`golden/v1.tar.xz` and its answers in `golden/v1.json` are never made again: no later release writes that format.
"""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gradsae_fast import contrast, rank_documents, rank_latents, rank_tokens
from gradsae_fast.errors import FormatError
from gradsae_fast.merge import merge
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores, repair, verify
from gradsae_fast.store.places.durable import read_document
from tests.store.synthetic import SITE, make_segment

GOLDEN = Path(__file__).parent / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "v1.json").read_text(encoding="utf-8"))
PLAIN, SIGNED = "model.layers.3", "model.layers.5.mlp"
QUESTIONS = {
    "latents": lambda store: rank_latents(store, site=PLAIN, k=5),
    "latents of a document": lambda store: rank_latents(store, site=PLAIN, document="speech-4", k=5),
    "exact latents": lambda store: rank_latents(store, site=PLAIN, k=5, exact_dense=True),
    "negative latents": lambda store: rank_latents(store, site=SIGNED, k=5, polarity="negative"),
    "documents": lambda store: rank_documents(store, latent=4, site=SIGNED, k=5),
    "tokens": lambda store: rank_tokens(store, latent=4, site=PLAIN, k=5),
    "contrast": lambda store: contrast(store, a="party=Whig", b="party=Tory", site=PLAIN, k=5),
}


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    with tarfile.open(GOLDEN / "v1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "v1.gradsae"


def resumed(path: Path, **settings: Any) -> ScoreWriter:
    store = open_scores(path)
    return ScoreWriter.create_or_resume(
        path, **{"run": {}, "identity": store.identity, "num_segments": store.num_segments, **settings}
    )


def check_answers(store: ScoreStore) -> None:
    assert QUESTIONS.keys() == EXPECTED["answers"].keys()
    for name, ask in QUESTIONS.items():
        found, expected = _plain(ask(store)), EXPECTED["answers"][name]
        assert found.keys() == expected.keys(), name
        for column, values in expected.items():
            numeric = all(isinstance(value, float) for value in values)
            assert found[column] == (pytest.approx(values, rel=1e-12, nan_ok=True) if numeric else values), name


def _plain(table: pa.Table) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(table.to_pydict()))
    return plain


@pytest.mark.parametrize("use_index", [True, False])
def test_a_store_of_version_1_answers_as_the_release_that_wrote_it(golden: Path, use_index: bool) -> None:
    assert open_scores(golden).index is None  # its index has what an older release kept in one
    if use_index:
        build_index(golden)
    store = open_scores(golden)
    assert (store.index is not None) == use_index
    assert [segment.digest for segment in store.segments] == EXPECTED["digests"]
    assert (store.num_documents, store.num_tokens) == (EXPECTED["documents"], EXPECTED["tokens"])
    assert len(store.generations) == 1
    check_answers(store)


def test_a_store_of_version_1_is_verified_and_repaired(golden: Path) -> None:
    assert verify(golden) == []
    damaged = next((golden / "segments").glob("000001-*/tokens/token_id/c.0"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert {fault.segment for fault in verify(golden)} == {1}
    assert repair(golden) == [1]
    assert verify(golden) == []


def test_a_store_of_version_1_is_resumed(golden: Path) -> None:
    with resumed(golden) as writer:
        assert writer.committed == {0, 1, 2}
        plain, signed = make_segment(3, num_latents=24), make_segment(3, num_latents=16, signed=True)
        writer.write(replace(plain, sites={PLAIN: plain.sites[SITE], SIGNED: signed.sites[SITE]}))
    build_index(golden)
    store = open_scores(golden)
    assert store.is_complete
    assert [segment.digest for segment in store.segments][:3] == EXPECTED["digests"]
    assert read_document(golden / "run.json")["format_version"] == 1
    assert verify(golden) == []


def test_a_store_of_version_1_is_not_grown_and_the_error_says_how_to_migrate(golden: Path) -> None:
    identity = open_scores(golden).identity
    other = {**identity, "corpus": {**identity["corpus"], "plan": "2c3d"}}
    with pytest.raises(FormatError, match=rf"`gradsae merge {golden} --out NEW`"):
        resumed(golden, identity=other, append=True)
    assert not (golden / "generations").exists()


def test_merging_it_alone_makes_a_store_of_the_present_version_with_the_same_answers(
    golden: Path, tmp_path: Path
) -> None:
    report = merge([golden], tmp_path / "migrated")
    assert (report.num_segments, report.num_missing) == (3, 1)
    store = open_scores(tmp_path / "migrated")
    assert read_document(store.path / "run.json")["format_version"] == 2
    assert [segment.digest for segment in store.segments] == EXPECTED["digests"]
    assert store.token_strings() == open_scores(golden).token_strings()
    assert store.described(PLAIN) is not None
    assert store.facts("gate") == open_scores(golden).facts("gate")
    assert store.facts("plan") == open_scores(golden).facts("plan")
    check_answers(store)
    assert verify(store.path) == []
    with resumed(tmp_path / "migrated") as writer:
        assert writer.committed == {0, 1, 2}
