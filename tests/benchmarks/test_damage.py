"""Damage to any kind of object is found and named; the long trials are `python -m benchmarks.durability`."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.durability.__main__ import Line, main
from benchmarks.durability.corruption import Victim, cut_short, flip_bits, remove_and_exchange


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    outcome = flip_bits(tmp_path, times=150)
    assert outcome.trials == {"bits flipped": 150}
    assert outcome.violations == []


def test_no_cut_file_goes_unnoticed(tmp_path: Path) -> None:
    outcome = cut_short(tmp_path, most=100)
    assert outcome.trials == {"files cut short": 100}
    assert outcome.violations == []


def test_removed_and_exchanged_files_are_named_and_healed(tmp_path: Path) -> None:
    outcome = remove_and_exchange(tmp_path, most=10)
    assert outcome.trials["stores healed"] >= 10
    assert outcome.violations == []


def test_every_kind_of_object_is_damaged(tmp_path: Path) -> None:
    kinds = {kind.split("/")[0] for kind in Victim(tmp_path / "scores").kinds}
    assert kinds == {"run.json", "commits", "segments", "dictionary", "described", "exact", "facts", "index"}


@pytest.mark.parametrize("violations", [(), ("segment 3 was lost",)])
def test_the_command_writes_a_page_and_fails_where_a_promise_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, violations: tuple[str, ...]
) -> None:
    lines = [Line(what="power cut", trials=500, violations=violations, seconds=1.0)]
    monkeypatch.setattr("benchmarks.durability.__main__.measure", lambda work, options: lines)
    monkeypatch.setattr(sys, "argv", ["durability", "--out", str(tmp_path), "--work", str(tmp_path)])
    with pytest.raises(SystemExit) if violations else nullcontext():
        main()
    (page,) = tmp_path.glob("*-durability.md")
    text = page.read_text(encoding="utf-8")
    assert f"| power cut | 500 | {len(violations)} | 6.0e-03 |" in text
    assert all(violation in text for violation in violations)
