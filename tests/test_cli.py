"""The command line, verb by verb, on one small store: what is typed, what is answered, and the exit status."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer

from gradsae_fast import cli, open_scores
from tests.terminal import Answer, gradsae

EXTRACT_FLAGS = {
    *("--model", "--sae", "--corpus", "--out", "--config", "--site", "--preset", "--objective"),
    *("--error-term", "--no-error-term", "--splice", "--text-column", "--id-column", "--prompt-column"),
    *(
        "--answer-column",
        "--contrast-columns",
        "--metadata-columns",
        "--subset",
        "--split",
        "--max-documents",
        "--context-length",
    ),
    *("--overlap", "--bos", "--sink-norm-ratio", "--mask-token-id", "--nonfinite", "--dtype", "--device"),
    *("--reads", "--path-steps", "--patch-column", "--exact-dense"),
    *("--engine", "--workers", "--gpus-per-worker", "--device-map", "--ray-address", "--stall-minutes"),
    *(
        "--precision-bits",
        "--store-profile",
        "--profile",
        "--attention",
        "--tokens-per-batch",
        "--threads",
        "--dry-run",
        "--force",
    ),
}
VERBS = [
    *(["append"], ["merge"]),
    *(["extract"], ["score"], ["rank", "latents"], ["rank", "documents"], ["rank", "tokens"]),
    *(["rank", "oddities"], ["rank", "stability"], ["contrast"], ["compare"], ["report"], ["export"], ["index"]),
    *(["info"], ["verify"], ["repair"], ["certify"], ["demo"]),
    *(["experiment", "masking"], ["experiment", "steering"], ["describe"], ["synthetic"]),
    *(["jacobian", "extract"], ["jacobian", "rank"]),
]
RANKINGS: dict[str, list[str]] = {
    "latents": ["rank", "latents", "STORE", "--where", "party=R", "-k", "3"],
    "documents": ["rank", "documents", "STORE", "--latent", "LATENT", "--per-token", "-k", "3"],
    "tokens": ["rank", "tokens", "STORE", "--latent", "LATENT", "--by", "activation", "--context", "4", "-k", "3"],
    "contrast": ["contrast", "STORE", "--a", "party=R", "--b", "party=D", "-k", "3"],
}


@pytest.fixture(scope="module")
def words(tiny_model_folder: Path, tiny_sae_folder: Path, tiny_corpus: Path) -> list[object]:
    """An extract command, all but its --out."""
    run = ["extract", "--model", tiny_model_folder, "--sae", tiny_sae_folder, "--corpus", tiny_corpus]
    return [*run, "--context-length", 64, "--overlap", 16, "--tokens-per-batch", 256, "--threads", 1, "--force"]


@pytest.fixture(scope="module")
def first_run(words: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    path = tmp_path_factory.mktemp("store") / "speeches.gradsae"
    return path, gradsae(*words, "--out", path)


@pytest.fixture(scope="module")
def store(first_run: tuple[Path, Answer]) -> Path:
    return first_run[0]


@pytest.fixture(scope="module")
def latent(store: Path) -> int:
    """A latent that fires in documents of both parties."""
    rows = json.loads(gradsae("rank", "latents", store, "--by", "frequency", "--format", "json").out)["rows"]
    return int(rows[0]["latent"])


def ask(ranking: str, store: Path, latent: int, *more: object) -> Answer:
    names = {"STORE": str(store), "LATENT": str(latent)}
    return gradsae(*(names.get(word, word) for word in RANKINGS[ranking]), *more)


def test_extract_tells_its_decisions_then_what_it_did_and_what_to_type_next(first_run: tuple[Path, Answer]) -> None:
    path, answer = first_run
    assert answer.status == 0
    for told in ("model: ", "SAE: ", "at model.layers.1", "tokens: BOS", "method: gradsae", "gate: ", "FAILED, forced"):
        assert told in answer.err
    assert f"{path}: 8 segments written, 0 were there" in answer.out
    assert "L0" in answer.out
    assert "FVU" in answer.out
    assert f"next: gradsae rank latents {path}" in answer.out


def test_the_same_command_again_resumes(store: Path, words: list[object], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(store, tmp_path / "broken"))
    (broken / "commits" / "000003.json").unlink()
    answer = gradsae(*words, "--out", broken)
    assert answer.status == 0
    assert "resuming: 7 segments are committed" in answer.err
    assert "1 segment written, 7 were there" in answer.out
    assert digests(broken) == digests(store)


def test_a_config_file_and_options_on_top_give_the_same_store(
    store: Path, tmp_path: Path, tiny_model_folder: Path, tiny_sae_folder: Path, tiny_corpus: Path
) -> None:
    (tmp_path / "run.toml").write_text(
        f"""
        [model]
        path = "{tiny_model_folder}"
        [[sae]]
        path = "{tiny_sae_folder}"
        [corpus]
        path = "{tiny_corpus}"
        context_length = 32
        overlap = 16
        [store]
        path = "elsewhere"
        [run]
        tokens_per_batch = 256
        force = true
        """
    )
    answer = gradsae("extract", "--config", tmp_path / "run.toml", "--out", tmp_path / "out", "--context-length", 64)
    assert answer.status == 0
    assert digests(tmp_path / "out") == digests(store)


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(words: list[object], tmp_path: Path) -> None:
    answer = gradsae(*words, "--out", tmp_path / "never", "--dry-run")
    assert answer.status == 0
    assert [line.split()[0] for line in answer.out.splitlines()] == ["corpus", "speed", "time", "memory", "disk"]
    assert "12 documents" in answer.out
    assert not (tmp_path / "never").exists()


def test_several_saes_at_given_sites_fill_one_store(words: list[object], tiny_sae_folder: Path, tmp_path: Path) -> None:
    sites = ["--sae", tiny_sae_folder, "--site", "model.layers.1", "--site", "blocks.2.hook_resid_post"]
    few = ["--max-documents", 4, "--objective", "next-token", "--objective", "entropy"]
    wide = [256 if word == 64 else word for word in words]  # each document in one window
    assert gradsae(*wide, *sites, *few, "--out", tmp_path / "two").status == 0
    found = json.loads(gradsae("info", tmp_path / "two", "--json").out)
    assert list(found["sites"]) == ["model.layers.1", "model.layers.2"]
    assert found["objectives"] == ["next-token", "entropy"]
    ambiguous = gradsae("rank", "latents", tmp_path / "two")
    assert (ambiguous.status, "say which with site=" in ambiguous.err) == (1, True)
    chosen = ["--site", "model.layers.2", "--objective", "entropy", "--format", "json"]
    query = json.loads(gradsae("rank", "latents", tmp_path / "two", *chosen).out)["query"]
    assert (query["site"], query["objective"]) == ("model.layers.2", "entropy")


def test_as_many_sites_as_saes_are_expected(words: list[object], tmp_path: Path) -> None:
    answer = gradsae(*words, "--out", tmp_path / "x", "--site", "model.layers.1", "--site", "model.layers.2")
    assert (answer.status, answer.err.startswith("error: got 2 --site for 1 --sae")) == (1, True)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_rankings_print_a_table_with_a_legend(ranking: str, store: Path, latent: int) -> None:
    answer = ask(ranking, store, latent)
    assert answer.status == 0
    header, *rows, legend = answer.out.splitlines()[:5]
    assert header.split()[0] == "rank"
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert "positive: the latent's presence raises the objective" in legend
    assert "[nats]" in legend


@pytest.mark.parametrize("ranking", RANKINGS)
def test_rankings_as_json_have_a_query_and_rows(ranking: str, store: Path, latent: int) -> None:
    document = json.loads(ask(ranking, store, latent, "--format", "json").out)
    assert list(document) == ["query", "rows"]
    assert document["query"]["ranking"] == ranking
    assert document["query"]["k"] == 3
    assert [row["rank"] for row in document["rows"]] == [1, 2, 3]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_rankings_as_csv_and_parquet_hold_the_rows_of_json(
    ranking: str, store: Path, latent: int, tmp_path: Path
) -> None:
    expected = json.loads(ask(ranking, store, latent, "--format", "json").out)["rows"]
    rows = list(csv.DictReader(io.StringIO(ask(ranking, store, latent, "--format", "csv").out)))
    assert [list(row) for row in rows] == [list(row) for row in expected]
    file = tmp_path / "rows.parquet"
    assert ask(ranking, store, latent, "--format", "parquet", "-o", file).out == ""
    assert pq.read_table(file).column("rank").to_pylist() == [1, 2, 3]
    assert ask(ranking, store, latent, "--format", "json", "-o", tmp_path / "rows.json").out == ""
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == expected


def test_options_of_a_ranking_reach_it(store: Path) -> None:
    options = ["--document", "doc-7", "--by", "absolute", "--smallest", "--include-special", "--format", "json"]
    query = json.loads(gradsae("rank", "latents", store, *options).out)["query"]
    assert (query["document"], query["by"], query["smallest"], query["includes_special"]) == (
        ["doc-7"],
        "absolute",
        True,
        True,
    )


@pytest.mark.parametrize(
    ("options", "objective"),
    [
        (["--objective", "top-token:logit"], "top-token:logit"),
        (["--preset", "paper", "--answer", " and the people"], "continuation-prob"),
        (["--objective", "logit-diff", "--contrast", " peace,work"], "logit-diff"),
    ],
)
def test_score_prints_pairs_of_token_and_latent(
    options: list[str], objective: str, tiny_model_folder: Path, tiny_sae_folder: Path
) -> None:
    words = ["score", "--model", tiny_model_folder, "--sae", tiny_sae_folder, "The state of the union", *options]
    table = gradsae(*words, "-k", 4).out.splitlines()
    assert len(table) == 6
    assert f"value of {objective}" in table[-1]
    document = json.loads(gradsae(*words, "-k", 4, "--format", "json").out)
    assert list(document["query"]) == ["site", "sign", f"unit of {objective}", f"value of {objective}"]
    assert [row["objective"] for row in document["rows"]] == [objective] * 4
    influences = [row["influence"] for row in document["rows"]]
    assert influences == sorted(influences, reverse=True)
    assert len(gradsae(*words, "-k", 4, "--format", "csv").out.splitlines()) == 5


def test_info_says_what_the_store_holds_and_json_has_the_same(store: Path) -> None:
    text = gradsae("info", store).out
    for row in ("8 of 8 committed; complete", "12 documents", "model.layers.1: 48 latents", "FAILED  l0", "BOS"):
        assert row in text
    found = json.loads(gradsae("info", store, "--json").out)
    assert set(found) == {
        *("path", "complete", "segments", "planned_segments", "documents", "tokens", "bytes", "precision_bits"),
        *("profile", "objectives", "sites", "identity", "run", "gate", "certificate", "exact_dense", "generations"),
        *("promise", "committed", "revisions", "dropped"),
    }
    assert found["identity"]["saes"]["model.layers.1"]["kernels"] == "tiled numba"
    assert found["gate"]["forced"] is True


def test_verify_finds_damage_repair_drops_it_and_the_command_heals_it(
    store: Path, words: list[object], tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(store, tmp_path / "damaged"))
    assert gradsae("verify", damaged) == Answer(status=0, out="no fault found; 8 of 8 segments committed\n", err="")
    shard = next((damaged / "segments").glob("000002-*/tokens/token_id/c.0"))
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    assert gradsae("verify", damaged, "--quick").status == 0
    found = gradsae("verify", damaged)
    assert found.status == 1
    assert "segment 2" in found.out
    assert "gradsae repair" in found.out
    assert gradsae("repair", damaged).out.startswith("dropped segments 2;")
    assert gradsae("repair", damaged).out == "no damaged segment\n"
    assert gradsae(*words, "--out", damaged).status == 0
    assert digests(damaged) == digests(store)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_every_verb_has_an_example(verb: list[str]) -> None:
    answer = gradsae(*verb, "--help")
    assert answer.status == 0
    assert f"Example: gradsae {' '.join(verb)}" in answer.out


def test_exact_effects_of_dense_latents_are_measured_told_and_ranked(
    tmp_path: Path, tiny_model_folder: Path, tiny_sae_folder: Path, tiny_corpus: Path
) -> None:
    out = tmp_path / "store"
    answer = gradsae(
        *("extract", "--model", tiny_model_folder, "--sae", tiny_sae_folder, "--corpus", tiny_corpus, "--out", out),
        *("--context-length", "64", "--overlap", "16", "--force", "--exact-dense", "0.9"),
    )
    assert answer.status == 0, answer.err
    assert "exact: on more than 0.9 of the tokens fire " in answer.out
    assert f"next: gradsae rank latents {out} --exact-dense" in answer.out
    ranked = json.loads(gradsae("rank", "latents", out, "--exact-dense", "--format", "json").out)
    assert {type(row["exact"]) for row in ranked["rows"]} == {bool}


def test_the_flags_of_extract_are_these_and_no_others() -> None:
    command: Any = typer.main.get_command(cli.app)
    params = command.commands["extract"].params
    assert {flag for param in params for flag in (*param.opts, *param.secondary_opts)} == EXTRACT_FLAGS


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["rank", "latents", "STORE", "-k", "0"], "got k = 0; expected 1 or more"),
        (["rank", "latents", "STORE", "--by", "inflence"], "did you mean 'influence'"),
        (["rank", "latents", "STORE", "--where", "party="], "cannot read the condition"),
        (["rank", "latents", "STORE", "--format", "xml"], "unknown format 'xml'"),
        (["rank", "latents", "STORE", "--format", "parquet"], "parquet is no text"),
        (["rank", "latents", "STORE", "-o", "x.json"], "add --format json"),
        (["rank", "latents", "STORE", "--format", "json", "-o", "."], "Is a directory"),
        (["rank", "tokens", "STORE", "--latent", "48"], "expected 0 to 47"),
        (["contrast", "STORE", "--a", "party=R", "--b", "party=X"], "party is never 'X'"),
        (["info", "nowhere.gradsae"], "nowhere.gradsae does not exist"),
        (["extract", "--config", "nowhere.toml"], "no configuration file at nowhere.toml"),
        (["extract", "--model", "M"], "missing [sae]"),
        (["score", "x", "--model", "M", "--sae", "S", "--contrast", "one"], "expected two continuations"),
        (["score", "x", "--model", "nowhere/at/all", "--sae", "S"], "there is no local path"),
    ],
)
def test_a_deliberate_error_is_one_message_and_status_1(typed: list[str], message: str, store: Path) -> None:
    answer = gradsae(*(str(store) if word == "STORE" else word for word in typed))
    assert answer.status == 1
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("typed", [[], ["nope"], ["rank", "latents"], ["extract", "--context-length", "long"]], ids=str)
def test_options_that_make_no_sense_are_status_2(typed: list[str]) -> None:
    assert gradsae(*typed).status == 2


def test_an_interrupt_is_status_130_and_one_sentence(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradsae_fast.render.show_info", interrupt)
    answer = gradsae("info", store)
    assert answer.status == 130
    assert answer.err.startswith("interrupted; what was committed stays")


def test_ranking_verbs_run_without_torch_in_a_process_of_their_own(store: Path, latent: int) -> None:
    code = f"""
import sys
from gradsae_fast.cli import main
for words in (["rank", "latents"], ["rank", "tokens", "--latent", "{latent}"], ["info"], ["verify"]):
    sys.argv = ["gradsae", *words, {str(store)!r}]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, words
assert not {{"torch", "transformers"}} & set(sys.modules)
sys.argv = ["gradsae", "rank", "latents", "nowhere"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: nowhere does not exist; expected a store written by `gradsae extract --out`: check the path\n"
    )


def digests(path: Path) -> list[str]:
    return [segment.digest for segment in open_scores(path).segments]
