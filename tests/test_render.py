"""What the terminal shows, where showing takes a decision."""

import dataclasses

import pyarrow as pa
import pytest

from gradsae_fast import progress, render
from gradsae_fast.estimate import Estimate
from gradsae_fast.extract import Progress

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
