"""Whole methods side by side, on the demo's model: numbers agree before anything is timed, else nothing is timed."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.__main__ import LENGTHS, choose, main
from benchmarks.peers.goals import goals, speed_ratios
from benchmarks.peers.meter import Measures, Meter
from benchmarks.peers.page import page
from benchmarks.peers.pairs import Pairs
from benchmarks.peers.run_engine import main as run_engine
from benchmarks.peers.turns import Result, launcher
from benchmarks.peers.variants import ENGINE, VARIANTS, Variant
from benchmarks.peers.verify import Agreement, WrongNumbers, verify
from benchmarks.peers.workload import NO_TARGET, Settings, Workload
from gradsae_fast.demo import ASSETS

OWN = ["plain-usual", "plain-tuned", "authors", "engine"]
COMMAND = [
    *("--model", str(ASSETS / "model"), "--corpus", str(ASSETS / "corpus.jsonl"), "--sae", str(ASSETS / "sae")),
    *("--lengths", "45", "20", "--authors-documents", "1", "--decode-steps", "2", "--turns", "1"),
    *("--documents-per-batch", "2", "--tokens-per-batch", "64", "--variants", *OWN),
]


def in_this_process(variant: Variant, arguments: list[str]) -> None:
    """What a process of the variant does."""
    importlib.import_module(f"benchmarks.peers.{variant.module}").main(arguments)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a small run has written, at both widths."""
    out = tmp_path_factory.mktemp("results")
    options = ["--random-latents", "2048", "--random-active", "24", "--out", str(out)]
    assert main([*COMMAND, *options], launch=in_this_process) == 0
    return out


def test_the_page_tells_every_variant_its_agreement_and_the_goals(written: Path) -> None:
    (text,) = (path.read_text(encoding="utf-8") for path in written.glob("*-peers-whole.md"))
    for width in ("C = 1,536", "C = 2,048"):
        section = text.split(f"## {width}")[1].split("## ")[0]
        for variant in VARIANTS:
            assert (variant.title in section) == (variant.name in OWN)
        assert "speed against plain-usual" in section
        assert "checks before the run" in section
    assert str(ASSETS) not in text


def test_all_variants_found_the_same_pairs_and_stored_them(written: Path) -> None:
    (path,) = written.glob("*-peers-whole.json")
    for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
        assert set(result["agreements"]) == {"plain-tuned", "authors", "engine"}
        for found in result["agreements"].values():
            assert found["num_at_edge"] == found["num_switched"] == 0
            assert found["worst_influence"] < 1e-4
        whole = {result["agreements"][name]["num_pairs"] for name in ("plain-tuned", "engine")}
        assert whole == {result["measures"]["plain-usual"][0]["num_pairs"]}
        assert result["agreements"]["authors"]["num_pairs"] < min(whole)
        assert all(run["stored_bytes"] > 0 for runs in result["measures"].values() for run in runs)


def test_a_variant_whose_numbers_are_off_stops_the_run_before_the_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[str] = []

    def with_one_wrong_influence(variant: Variant, arguments: list[str]) -> None:
        in_this_process(variant, arguments)
        launched.append(variant.name)
        if variant is ENGINE:
            numbers = Path(arguments[1]) / "numbers.npz"
            found = Pairs.load(numbers)
            assert found.influence_Z is not None
            found.influence_Z[len(found.influence_Z) // 2] += 0.01 * np.abs(found.influence_Z).max()
            found.save(numbers)

    command = [*COMMAND[:-4], "plain-tuned", "engine", "--widths", "given", "--out", str(tmp_path / "results")]
    assert main(command, launch=with_one_wrong_influence) == 1
    assert launched == ["plain-tuned", "engine"]
    assert "engine: an influence is off by" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def pairs(*entries: tuple[int, int, float, float]) -> Pairs:
    token, latent, activation, influence = (np.array(column) for column in zip(*entries, strict=True))
    return Pairs(token_Z=token, latent_Z=latent, activation_Z=activation, influence_Z=influence)


EXPECTED = ((0, 1, 2.0, 5.0), (0, 2, 3.0, -1.0), (1, 0, 1.0, 0.5))
THRESHOLD_C = np.array([1.0, 1.0, 1.0])


DOCUMENT_N = np.array([0, 1])


def test_order_makes_no_difference() -> None:
    found = verify("one", pairs(*EXPECTED[::-1]), pairs(*EXPECTED), THRESHOLD_C, DOCUMENT_N)
    assert found == Agreement(num_pairs=3, num_at_edge=0, num_switched=0, worst_activation=0.0, worst_influence=0.0)


def test_a_latent_at_its_threshold_may_be_missing_and_excuses_the_influences_of_its_document_alone() -> None:
    other = ((0, 1, 2.0, 5.0), (0, 2, 3.0, -1.0), (1, 1, 2.0, 9.0))
    expected = pairs(*other, (1, 0, 1.0, 0.5))
    found = verify("one", pairs(*other[:2], (1, 1, 2.0, 2.0)), expected, THRESHOLD_C, DOCUMENT_N)
    assert found == Agreement(num_pairs=3, num_at_edge=1, num_switched=1, worst_activation=0.0, worst_influence=0.0)
    with pytest.raises(WrongNumbers, match="an influence is off"):
        verify("one", pairs((0, 1, 2.0, 6.0), *other[1:]), expected, THRESHOLD_C, DOCUMENT_N)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (EXPECTED[1:], "far from their thresholds"),
        ((*EXPECTED, (1, 2, 2.0, 1.0)), "far from their thresholds"),
        ((*EXPECTED, (1, 1, 1.0, 1.0), (1, 2, 1.0, 1.0)), "2 of 3 pairs"),
        ((*EXPECTED[:2], (1, 0, 1.1, 0.5)), "an activation is off"),
        ((*EXPECTED[:2], (1, 0, 1.0, 0.6)), "an influence is off"),
        ((*EXPECTED[:2], (1, 0, 1.0, np.nan)), "not finite"),
    ],
)
def test_what_is_missing_extra_or_different_is_wrong(
    entries: tuple[tuple[int, int, float, float], ...], complaint: str
) -> None:
    with pytest.raises(WrongNumbers, match=complaint):
        verify("one", pairs(*entries), pairs(*EXPECTED), THRESHOLD_C, DOCUMENT_N)


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    """Documents of 3, 1, 4 and 2 tokens; the first of each is masked and no target."""
    lengths = [3, 1, 4, 2]
    first_N = np.concatenate([np.arange(length) == 0 for length in lengths])
    settings = Settings(
        model="model",
        sae="sae",
        site="model.layers.0",
        num_latents=8,
        context_length=4,
        documents_per_batch=2,
        tokens_per_batch=6,
        authors_documents=(1, 3),
        decode_steps=1,
        threads=None,
    )
    return Workload(
        folder=tmp_path / "workload",
        settings=settings,
        token_id_N=np.arange(10) + 50,
        document_ptr=np.cumsum([0, *lengths]),
        spliced_N=~first_N,
        target_N=~first_N,
    )


def test_a_workload_is_read_as_it_was_written(workload: Workload) -> None:
    workload.save()
    again = Workload.load(workload.folder)
    assert again.settings == workload.settings
    for name in ("token_id_N", "document_ptr", "spliced_N", "target_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(workload, name))


@pytest.mark.parametrize("bucketed", [False, True])
def test_every_token_is_in_one_batch_and_padding_is_neither_spliced_nor_a_target(
    workload: Workload, bucketed: bool
) -> None:
    seen: list[int] = []
    shapes = []
    for batch in workload.batches(bucketed=bucketed):
        shapes.append(tuple(batch.token_ids_BT.shape))
        seen += batch.token_BT[batch.real_BT].tolist()
        assert (batch.token_ids_BT[batch.real_BT] == batch.token_BT[batch.real_BT] + 50).all()
        assert not batch.spliced_BT[~batch.real_BT].any()
        assert (batch.label_BT[~batch.spliced_BT] == NO_TARGET).all()
        assert (batch.label_BT[batch.spliced_BT] == batch.token_ids_BT[batch.spliced_BT]).all()
    assert sorted(seen) == list(range(10))
    assert shapes == ([(1, 4), (2, 3), (1, 1)] if bucketed else [(2, 3), (2, 4)])


def test_a_variant_without_its_interpreter_is_left_out_and_named() -> None:
    ready, left_out = choose(None, {"saelens": "python"})
    assert [one.name for one in VARIANTS if one not in ready] == ["delphi"]
    assert left_out == ["delphi (no --python-delphi was given)"]
    assert len(LENGTHS) % 4 == 0  # delphi drops a batch that is not full


def test_a_process_that_fails_says_why_and_is_run_by_its_own_interpreter() -> None:
    launch = launcher({"saelens": sys.executable, "delphi": "no-such-python"})
    with pytest.raises(RuntimeError, match=r"one ended with status 1: .*No module named benchmarks\.peers\.nothing"):
        launch(Variant(name="one", title="one", module="nothing", environment="saelens"), [])
    with pytest.raises(FileNotFoundError, match="no-such-python"):
        launch(Variant(name="one", title="one", module="nothing", environment="delphi"), [])


def test_an_engine_that_masks_other_tokens_is_refused(tmp_path: Path) -> None:
    seen: list[Path] = []

    def keep(variant: Variant, arguments: list[str]) -> None:
        seen.append(Path(arguments[0]))
        workload = Workload.load(seen[0])
        replace(workload, spliced_N=workload.spliced_N & (np.arange(len(workload.spliced_N)) != 7)).save()
        with pytest.raises(ValueError, match="masks other tokens"):
            run_engine([arguments[0], str(tmp_path / "out")])
        raise WrongNumbers(variant.name)

    command = [*COMMAND[:-4], "plain-usual", "engine", "--widths", "given"]
    assert main(command, launch=keep) == 1
    assert seen


def measures(**parts: float | None) -> Measures:
    values = {
        "seconds": 1.0,
        "cpu_seconds": 2.0,
        "load_seconds": 1.0,
        "num_tokens": 100,
        "loaded_bytes": 100,
        "peak_bytes": 200,
        "checks_peak_bytes": None,
        "stored_bytes": 10,
        "num_pairs": 5,
        "num_threads": 1,
        **parts,
    }
    return Measures(**values, versions={}, parts={})  # type: ignore[arg-type]


def test_goals_are_of_one_turns_rates_and_the_wide_ones_include_memory() -> None:
    runs = {
        "plain-usual": [measures(seconds=4.0, peak_bytes=1100), measures(seconds=8.0, peak_bytes=1100)],
        "plain-tuned": [measures(seconds=1.0, peak_bytes=None), measures(seconds=1.0, peak_bytes=None)],
        "engine": [measures(seconds=1.0), measures(seconds=2.0)],
    }
    result = Result(num_latents=65536, l0=64.0, agreements={}, reference="plain-usual", measures=runs)
    assert speed_ratios(result, "plain-usual") == [4.0, 4.0]
    found = {goal.text: (goal.wanted, goal.found, goal.is_reached) for goal in goals(result)}
    assert found == {
        "speed against plain-usual": (3.0, 4.0, True),
        "speed against plain-tuned": (1.3, 0.75, False),
        "memory above model and SAE, as a share of plain-usual's": (0.1, 0.1, True),
    }


def test_memory_is_not_invented_where_the_system_does_not_tell() -> None:
    runs = {name: [measures(peak_bytes=None, loaded_bytes=None)] for name in ("plain-usual", "engine")}
    result = Result(num_latents=65536, l0=64.0, agreements={}, reference="plain-usual", measures=runs)
    assert [goal.text for goal in goals(result)] == ["speed against plain-usual"]
    about = {
        "date": "2026-01-01",
        "device": "a machine",
        "threads": 1,
        "versions": {},
        "left_out": ["delphi (why)"],
        "num_documents": 1,
        "shortest": 1,
        "longest": 1,
        "num_tokens": 1,
        "turns": 1,
        "load_before": 0.0,
        "load_after": 0.0,
        "documents_per_batch": 1,
        "tokens_per_batch": 1,
        "decode_steps": 1,
        "num_authors": 1,
        "usual_padding": 0.5,
        "tuned_padding": 0.0,
    }
    text = page(about, [result])
    assert "not available" in text
    assert "Left out: delphi (why)." in text


def test_memory_counts_what_the_work_takes_and_not_what_loading_took() -> None:
    meter = Meter()
    spent = np.ones(2**24)
    del spent
    meter.loaded()
    if meter.loaded_bytes is None:
        pytest.skip("this system does not tell")
    work = np.ones(2**23)
    del work
    meter.end()
    assert meter.peak_bytes is not None
    assert 50e6 < meter.peak_bytes - meter.loaded_bytes < 100e6
