"""Every question, asked of stores whose documents were dropped and whose segments were compacted.

Values are small multiples of 1/8, so that no sum depends on its order.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file

from gradsae_fast import notebook, open_scores
from gradsae_fast.compact import compact
from gradsae_fast.drop import drop
from gradsae_fast.errors import GradsaeError, QueryError
from gradsae_fast.export import export_scores
from gradsae_fast.export.provenance import PROVENANCE
from gradsae_fast.ranking import (
    contrast,
    contrast_groups,
    rank_documents,
    rank_latents,
    rank_oddities,
    rank_stability,
    rank_tokens,
)
from gradsae_fast.ranking.answer import query_of
from gradsae_fast.ranking.compare import compare_stores
from gradsae_fast.ranking.index import build_index
from gradsae_fast.report import write_report
from gradsae_fast.store import ScoreStore
from tests.ranking.conftest import OBJECTIVES, SITES, World, make_segments, make_world, write_segments, write_store
from tests.store.dropped import without
from tests.terminal import gradsae

GONE = ("doc-00", "doc-06", "doc-08", "doc-12")  # of the first segment, of the second, and two of the fourth
ALL_OF_ONE = "doc-07"  # the only document of the third

# What answers of a store say about its revisions: in an export's provenance, and in an audit.
_REVISED = r'"(revisions|dropped)":\s*\d+,\s*'
_DROPPED = r"<dt>Dropped</dt><dd>.*?</dd>"


def answers(store: ScoreStore) -> dict[str, Any]:
    """What every ranking says, as values that can be compared."""
    asked: dict[str, Callable[[], Any]] = {}
    for site in SITES:
        for objective in OBJECTIVES:
            one: dict[str, Any] = {"site": site, "objective": objective}
            asked |= {
                f"{name} {site} {objective}": question
                for name, question in _questions(store, one, signed=site == SITES[-1]).items()
            }
    return {name: _answered(question) for name, question in asked.items()}


def exports(store: ScoreStore, folder: Path) -> dict[str, Any]:
    """What every export and an audit have."""
    folder.mkdir()
    asked: dict[str, dict[str, Any]] = {
        "parquet": {"order": "latent"},
        "csr": {"rows": "tokens"},
        "anndata": {},
        "neuronpedia": {"model_id": "tiny"},
        "delphi": {},
    }
    for to, options in asked.items():
        path = folder / {"csr": "csr.npz", "anndata": "scores.h5ad"}.get(to, to)
        export_scores(store, path, to=to, site=SITES[0], objective=OBJECTIVES[0], **options)
    write_report(store, folder / "audit", k=6, groups=["party"], site=SITES[1], objective=OBJECTIVES[0])
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _readable(path) for name, path in files.items()}


def _readable(path: Path) -> Any:
    """What a file has, without when it was written, what was done to the store, and in which segment a document lay.

    Of a page what is no number.
    """
    if path.suffix == ".h5ad":
        table = anndata.read_h5ad(path)
        return table.obs.drop(columns=["segment", "document_index"]).to_csv(), table.X.toarray().tolist()
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            places = [name for name in arrays.files if name.endswith(("segment", "document_index"))]
            named = {name: arrays[name].tolist() for name in arrays.files if name not in places}
        return named | {PROVENANCE: re.sub(_REVISED, "", bytes(named[PROVENANCE]).decode())}
    if path.suffix == ".safetensors":
        return {name: array.tolist() for name, array in load_file(path).items()}
    if path.name == "parquet":
        return pyarrow.parquet.read_table(path).drop_columns(["segment", "document_index"]).to_pylist()
    text = path.read_text(encoding="utf-8")
    return re.sub("[0-9]+", "#", re.sub(_DROPPED, "", text)) if path.suffix == ".html" else re.sub(_REVISED, "", text)


def _questions(store: ScoreStore, one: dict[str, Any], *, signed: bool) -> dict[str, Callable[[], Any]]:
    where = "party=Democratic or year>=1960"
    polarity: dict[str, Any] = {"polarity": "negative"} if signed else {}
    return {
        "latents": lambda: rank_latents(store, k=12, **one, **polarity),
        "latents where": lambda: rank_latents(store, where=where, by="absolute", **one),
        "latents of a document": lambda: rank_latents(store, document="doc-05", **one),
        "latents of a dropped document": lambda: rank_latents(store, document="doc-07", **one),
        "documents": lambda: [rank_documents(store, latent=c, per_token=c % 2 == 1, **one) for c in range(12)],
        "tokens": lambda: [rank_tokens(store, latent=c, context=3, **one, **polarity) for c in range(12)],
        "tokens where": lambda: rank_tokens(store, latent=3, by="activation", where=where, k=None, **one),
        "contrast": lambda: contrast(store, a="party=Democratic", permutations=200, **one),
        "groups": lambda: contrast_groups(store, column="party", **one),
        "oddities": lambda: rank_oddities(store, min_active=1, **one),
        "decisive": lambda: rank_oddities(store, kind="decisive", min_active=1, max_frequency=1.0, **one),
        "stability": lambda: rank_stability(store, resamples=100, **one),
        "document": lambda: notebook.show_document(store, "doc-05", **one)._repr_html_(),
    }


def _answered(question: Callable[[], Any]) -> Any:
    try:
        return _comparable(question())
    except GradsaeError as error:
        return type(error).__name__, str(error)


def _comparable(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_comparable(one) for one in answer]
    if not isinstance(answer, pa.Table):
        return answer
    about = {key: value for key, value in answer.schema.metadata.items() if key != b"revisions"}
    return answer.schema.names, answer.to_pylist(), about


def equal(got: Any, expected: Any) -> bool:
    """Whether two answers are one, but for the last bits of means, which depend on where segments end."""
    if isinstance(expected, float):
        return isinstance(got, float) and bool(np.isclose(got, expected, rtol=1e-12, atol=1e-12, equal_nan=True))
    if isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(equal, got, expected))
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(equal(got[name], value) for name, value in expected.items())
    return bool(got == expected)


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, answer in expected.items():
        assert equal(got[name], answer), (name, got[name], answer)


@pytest.fixture(scope="module")
def full() -> World:
    return make_world()


@pytest.fixture(scope="module")
def dropped(full: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after its documents were dropped; it lies at a place of the same name as the others."""
    path = tmp_path_factory.mktemp("dropped") / "scores.gradsae"
    write_store(path, full)
    build_index(path)
    drop(path, GONE)
    return path


def never_had(world: World, keys: Collection[str], path: Path) -> Path:
    """A store of the same corpus that was extracted without some documents."""
    write_segments(path, [without(segment, keys) for segment in make_segments(world)])
    build_index(path)
    return path


@pytest.mark.parametrize("use_index", [True, False])
def test_a_store_after_drop_answers_as_one_that_never_had_the_documents(
    full: World, dropped: Path, tmp_path: Path, use_index: bool
) -> None:
    never = never_had(full, GONE, tmp_path / "never" / "scores.gradsae")
    stores = [open_scores(path, use_index=use_index) for path in (dropped, never)]
    assert [store.index is not None for store in stores] == [use_index] * 2
    assert [store.is_complete for store in stores] == [True] * 2
    assert_equal(answers(stores[0]), answers(stores[1]))
    assert_equal(exports(stores[0], tmp_path / "a"), exports(stores[1], tmp_path / "b"))
    one: dict[str, Any] = {"site_a": SITES[0], "site_b": SITES[1], "objective": OBJECTIVES[0], "k": 5}
    tables = [compare_stores(store, store, **one) for store in stores]
    assert equal(_comparable(tables[0]), _comparable(tables[1]))


@pytest.mark.parametrize("use_index", [True, False])
def test_a_store_after_compact_answers_as_before(dropped: Path, tmp_path: Path, use_index: bool) -> None:
    path = copied(dropped, tmp_path / "scores.gradsae")
    before = [open_scores(path, use_index=use_index)]
    found = answers(before[0]), exports(before[0], tmp_path / "before")
    report = compact(path, tokens_per_segment=60)
    store = open_scores(path, use_index=use_index)
    assert len(store.segments) == report.segments_after < report.segments_before
    assert (store.index is not None, store.is_complete) == (use_index, True)
    assert_equal(answers(store), found[0])
    assert_equal(exports(store, tmp_path / "after"), found[1])
    assert len(list((path / "index").glob("*.json"))) == 1


def test_a_segment_that_lost_all_its_documents_is_in_no_answer(full: World, dropped: Path, tmp_path: Path) -> None:
    path = copied(dropped, tmp_path / "scores.gradsae")
    drop(path, ALL_OF_ONE)
    segments = [without(segment, {*GONE, ALL_OF_ONE}) for segment in make_segments(full)]
    kept = [segment for segment in segments if segment.documents.key]
    write_segments(tmp_path / "never", [dataclasses.replace(one, index=n) for n, one in enumerate(kept)])
    for use_index in (True, False):
        store = open_scores(path, use_index=use_index)
        assert (len(store.segments), store.is_complete) == (len(kept), True) == (4, True)
        assert_equal(answers(store), answers(open_scores(tmp_path / "never")))


def test_documents_of_a_store_can_be_compared_with_those_of_a_revised_one(
    full: World, dropped: Path, tmp_path: Path
) -> None:
    """Documents are matched by their keys, wherever they lie."""
    write_store(tmp_path / "whole", full)
    never = never_had(full, GONE, tmp_path / "never")
    compacted = copied(dropped, tmp_path / "compacted")
    compact(compacted)
    one: dict[str, Any] = {"site_a": SITES[0], "site_b": SITES[0], "objective": OBJECTIVES[0], "match": "same"}
    tables = [compare_stores(open_scores(tmp_path / "whole"), open_scores(b), **one) for b in (never, compacted)]
    assert equal(tables[0].to_pylist(), tables[1].to_pylist())


def copied(path: Path, target: Path) -> Path:
    return Path(shutil.copytree(path, target))


def test_answers_exports_and_audits_say_that_documents_were_dropped(full: World, dropped: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "whole", full)
    said = []
    for name, store in {"whole": open_scores(tmp_path / "whole"), "dropped": open_scores(dropped)}.items():
        one: dict[str, Any] = {"site": SITES[0], "objective": OBJECTIVES[0]}
        export_scores(store, tmp_path / f"{name}.parquet", to="parquet", **one)
        provenance = json.loads(pyarrow.parquet.read_schema(tmp_path / f"{name}.parquet").metadata[b"provenance"])
        write_report(store, tmp_path / f"{name}-audit", k=2, **one)
        page = (tmp_path / f"{name}-audit" / "index.html").read_text(encoding="utf-8")
        answered = query_of(rank_latents(store, k=2, **one)).get("revisions")
        said.append((answered, provenance.get("revisions"), provenance.get("dropped"), "4 documents since" in page))
    assert said == [(None, None, None, False), (1, 1, len(GONE), True)]


def test_documents_are_dropped_by_a_condition(full: World, tmp_path: Path) -> None:
    by_key, by_condition = tmp_path / "a", tmp_path / "b"
    for path in (by_key, by_condition):
        write_store(path, full)
    gone = [m for m, party in enumerate(full.metadata["party"]) if party == "Democratic"]
    drop(by_key, [full.keys[m] for m in gone])
    report = drop(by_condition, where="party=Democratic")
    assert report.num_documents == len(gone)
    digests = [[segment.digest for segment in open_scores(path).segments] for path in (by_key, by_condition)]
    assert digests[0] == digests[1]
    with pytest.raises(QueryError, match="party is never 'Democratic'"):
        drop(by_condition, where="party=Democratic")


def test_a_condition_that_meets_one_of_two_documents_of_a_key_is_refused(full: World, tmp_path: Path) -> None:
    segments = make_segments(full)
    table = segments[1].documents
    double = dataclasses.replace(table, key=["doc-00", *table.key[1:]])
    segments[1] = dataclasses.replace(segments[1], documents=double)
    write_segments(tmp_path / "scores", segments)
    with pytest.raises(QueryError, match=r"2 documents of .* have the key 'doc-00', and 1 of them meet"):
        drop(tmp_path / "scores", where="party=Republican and score=s0")
    assert drop(tmp_path / "scores", "doc-00").num_documents == 2


def test_the_verbs_say_what_they_did(full: World, tmp_path: Path) -> None:
    path = tmp_path / "scores.gradsae"
    write_store(path, full)
    planned = gradsae("drop", path, "doc-00", "doc-01", "--dry-run")
    assert planned.out.startswith(f"{path}: would drop 2 documents with ")
    assert "tokens from 1 segment of " in planned.out
    done = gradsae("drop", path, "doc-00", "doc-01")
    assert done.out.startswith(planned.out.rstrip().replace("would drop", "dropped"))
    assert done.out.rstrip().endswith(" now")
    again = gradsae("drop", path, "doc-00", "doc-02")
    assert ": 1 had been dropped before; dropped 1 document with 0 tokens from 1 segment" in again.out
    unknown = gradsae("drop", path, "doc-99")
    assert (unknown.status, unknown.out) == (1, "")
    assert "has the key 'doc-99'; nothing was dropped: did you mean 'doc-09'" in unknown.err
    for words in (["drop", path], ["drop", path, "doc-03", "--where", "party=none"]):
        assert "either keys of documents or a condition" in gradsae(*words).err
    assert "5 segments would become 1; 13 documents, " in gradsae("compact", path, "--dry-run").out
    compacted = gradsae("compact", path)
    assert "5 segments became 1; 13 documents, " in compacted.out
    assert "nothing to compact: 1 segment " in gradsae("compact", path).out
    assert open_scores(path).index is not None


def test_an_incomplete_store_gets_no_index_yet(full: World, tmp_path: Path) -> None:
    from gradsae_fast.store import ScoreWriter

    path = tmp_path / "scores"
    with ScoreWriter.create_or_resume(path, run={}, identity={}, num_segments=5) as writer:
        for segment in make_segments(full)[:3]:
            writer.write(segment)
    drop(path, "doc-00")
    compact(path)
    assert not (path / "index").exists()
    assert [segment.num_documents for segment in open_scores(path).segments] == [7]
