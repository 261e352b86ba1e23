"""`gradsae contrast`, on a store without a model behind it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast import contrast, open_scores
from gradsae_fast.ranking import query_of
from gradsae_fast.store import ScoreWriter
from tests.store.synthetic import make_segment
from tests.terminal import gradsae


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contrast") / "scores.gradsae"
    with ScoreWriter.create_or_resume(path, run={}, identity={}, num_segments=1) as writer:
        writer.write(make_segment(num_documents=12, num_tokens=200, num_latents=20))
    return path


def as_json(*words: object) -> dict[str, Any]:
    answer = gradsae("contrast", *words, "--format", "json")
    assert answer.status == 0, answer.err
    return dict(json.loads(answer.out))


A, B = "key ~ 1", "not key ~ 1"


def test_one_group_is_compared_with_all_others(store: Path) -> None:
    alone, both = (as_json(store, "--a", A, *more) for more in ([], ["--b", B]))
    assert alone["rows"] == both["rows"]
    table = contrast(open_scores(store), a=A, b=B)
    assert [row["latent"] for row in both["rows"]] == table.column("latent").to_pylist()
    assert both["query"]["order"] == query_of(table)["order"] == "difference"


def test_a_permutation_test_is_made_as_often_as_asked(store: Path) -> None:
    found = as_json(store, "--a", A, "--permutations", 30, "--seed", 3, "--order", "p", "-k", 2)
    assert tuple(found["query"][name] for name in ("permutations", "seed", "order")) == (30, 3, "p")
    assert {"p_permutation", "p_max"} < set(found["rows"][0])


def test_every_value_of_a_column_is_a_group(store: Path) -> None:
    found = as_json(store, "--groups", "num_tokens", "-k", 1, "--by", "activation")
    assert [row["group"] for row in found["rows"]] == list(found["query"]["groups"])
    assert found["query"]["order"] == "a"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--a", A], "q: corrected for 20 tests"),
        (["--a", A, "--permutations", 9], "20 tests; permutation test: 9 relabellings, seed 0"),
        (
            ["--a", "key ~ 11", "--permutations", 99],
            "no p or q: a group of one document has no spread; permutation test: 11 relabellings, all there are",
        ),
        (["--a", A, "--b", A], "in both groups: "),
        (["--groups", "num_tokens"], "q: corrected for"),
    ],
)
def test_a_table_ends_with_what_was_tested(store: Path, words: list[object], line: str) -> None:
    answer = gradsae("contrast", store, *words)
    assert answer.status == 0, answer.err
    assert line in answer.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs --a CONDITION or --groups COLUMN"),
        (["--a", A, "--groups", "Party"], "one of the two"),
        (["--b", A], "needs --a CONDITION"),
        (["--groups", "num_tokens", "--b", A], "takes no --b, --permutations or --seed"),
        (["--groups", "num_tokens", "--permutations", 10], "takes no --b, --permutations or --seed"),
        (["--a", A, "--seed", 1], "got seed = 1 without permutations"),
        (["--a", A, "--permutations", -1], "got permutations = -1"),
        (["--a", "(key ~ 1"], "a ')' is missing"),
        (["--groups", "Partei"], "did you mean 'Party'"),
        (["--a", A, "-k", 0], "got k = 0"),
        (["--a", A, "--order", "x"], "unknown order 'x'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_message(store: Path, words: list[object], message: str) -> None:
    answer = gradsae("contrast", store, *words)
    assert answer.status == 1
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert message in answer.err
