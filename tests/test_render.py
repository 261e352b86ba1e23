"""What the terminal shows, where showing takes a decision."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from gradsae_fast import progress, render, verdict
from gradsae_fast.estimate import Estimate
from gradsae_fast.extract import Progress
from gradsae_fast.ranking import write_table
from gradsae_fast.store import Fault, ScoreWriter, open_scores
from tests.store.synthetic import SITE, make_segment

ESTIMATE = Estimate(
    num_documents=10,
    num_tokens=90_000,
    num_segments=8,
    probe_tokens=900,
    tokens_per_second=100.0,
    seconds=900.0,
    peak_memory_bytes=1_500_000_000,
    store_bytes=2_000_000,
    free_bytes=1_000_000_000,
)

# Erase the screen, title, clipboard, an eight-bit CSI, a right-to-left override.
HOSTILE = "evil\x1b[2J\x1b]0;owned\x07\x1b]52;c;cm0=\x07\x9b31m\u202eabc"
SHOWN = "evil␛[2J␛]0;owned␇␛]52;c;cm0=␇[U+009B]31m[U+202E]abc"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def hostile_table() -> pa.Table:
    """A key, a column's name and the metadata of a table that mean to be obeyed."""
    table = pa.table({"key": [HOSTILE, "two\nlines"], HOSTILE: [1.5, 2.0]})
    return table.replace_schema_metadata({"note": json.dumps(HOSTILE)})


def test_an_estimate_reads_in_units_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_estimate(ESTIMATE)
    out = capsys.readouterr().out
    for words in ("100 tokens/s", "about 15 min", "1.5 GB at the peak", "about 2 MB; 1 GB are free"):
        assert words in out
    assert "warning" not in out


def test_a_disk_that_is_too_small_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_estimate(dataclasses.replace(ESTIMATE, free_bytes=1_000_000))
    assert "the disk is too small for this run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "shown"), [(3.4, "about 3 s"), (119, "about 119 s"), (7100, "about 118 min"), (9000, "about 2.5 h")]
)
def test_durations_change_unit(seconds: float, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    render.show_estimate(dataclasses.replace(ESTIMATE, seconds=seconds))
    assert shown in capsys.readouterr().out


def test_a_cell_stays_on_its_line_and_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"token": ["\n", "[bold]x", None], "influence": [0.123456, -1e-9, None]})
    render.show_table(table)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [["token", "influence"], ["⏎", "0.1235"], ["[bold]x", "-1e-09"]]


def test_a_terminal_obeys_nothing_that_a_table_of_a_hostile_corpus_says(
    hostile_table: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    render.show_table(hostile_table)
    out = capsys.readouterr().out
    assert not OBEYED.search(out)
    assert out.count(SHOWN) == 3  # the column's name, the key, the line below the table


def test_a_column_named_like_markup_keeps_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_table(pa.table({"[/bold]": ["x"]}))
    assert capsys.readouterr().out.split() == ["[/bold]", "x"]


@pytest.mark.parametrize("format", ["json", "csv"])
def test_json_and_csv_are_made_visible_on_a_terminal_alone(
    format: str, hostile_table: pa.Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    render.show_table(hostile_table, format)
    piped = capsys.readouterr().out
    assert piped == write_table(hostile_table, format=format)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    render.show_table(hostile_table, format)
    shown = capsys.readouterr().out
    assert not OBEYED.search(shown)
    assert shown.count("\n") == piped.count("\n")


def test_a_terminal_obeys_nothing_that_a_store_says_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, identity = {"bos": HOSTILE}, {"method": {HOSTILE: HOSTILE}}
    with ScoreWriter.create_or_resume(tmp_path / "store", run=run, identity=identity, num_segments=1) as writer:
        writer.write(make_segment())
        writer.write_facts("gate", {"checks": [{"passed": False, "name": HOSTILE, "site": SITE, "found": HOSTILE}]})
    render.show_info(open_scores(tmp_path / "store"))
    out = capsys.readouterr().out
    assert not OBEYED.search(out)
    assert out.count(SHOWN) == 5
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    render.show_info(open_scores(tmp_path / "store"), as_json=True)
    assert not OBEYED.search(capsys.readouterr().out)


def test_a_terminal_obeys_no_name_of_a_file_that_verify_found(capsys: pytest.CaptureFixture[str]) -> None:
    verdict.show_faults([Fault(segment=None, object=HOSTILE, chunk=None, what="is no part of the store")])
    assert SHOWN in capsys.readouterr().out


def test_a_log_gets_a_line_now_and_then_and_a_terminal_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Progress(
        num_tokens=50,
        total_tokens=200,
        num_segments=1,
        total_segments=8,
        tokens_per_second=10.0,
        bytes_written=5_000,
        l0={"model.layers.1": 23.27},
        fvu={"model.layers.1": 0.7031},
    )
    with progress.progress_bar() as bar:
        bar.update(state)
        assert "50/200" not in capsys.readouterr().err
        monkeypatch.setattr(progress, "_LOG_SECONDS", -1.0)
        bar.update(state)
    expected = "50/200 tokens, 10 tok/s, L0 23.3, FVU 0.703, 5 kB written, 15 s left\n"
    assert expected in capsys.readouterr().err


def test_a_run_that_has_heard_of_no_worker_says_nothing_of_speed_and_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Progress(
        num_tokens=0,
        total_tokens=200,
        num_segments=0,
        total_segments=8,
        tokens_per_second=0.0,
        bytes_written=0,
        l0={},
        fvu={},
    )
    monkeypatch.setattr(progress, "_LOG_SECONDS", -1.0)
    with progress.progress_bar() as bar:
        bar.update(state)
    assert capsys.readouterr().err.endswith("0/200 tokens, speed not known yet\n")


def test_a_run_that_finds_everything_scored_says_so_without_nan_and_infinity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Progress(
        num_tokens=200,
        total_tokens=200,
        num_segments=8,
        total_segments=8,
        tokens_per_second=0.0,
        bytes_written=0,
        l0={"model.layers.1": float("nan")},
        fvu={"model.layers.1": float("nan")},
    )
    monkeypatch.setattr(progress, "_LOG_SECONDS", -1.0)
    with progress.progress_bar() as bar:
        bar.update(state)
    assert capsys.readouterr().err.endswith("200/200 tokens, nothing was left to score\n")
