"""Damage to any kind of object is found and named; the long trials are `python -m benchmarks.durability`."""

from pathlib import Path

from benchmarks.durability.corruption import Victim, cut_short, flip_bits, remove_and_exchange


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    outcome = flip_bits(tmp_path, times=150)
    assert outcome.trials == {"bits flipped": 150, "stores healed to equal bytes": 3}
    assert outcome.violations == []


def test_no_cut_file_goes_unnoticed(tmp_path: Path) -> None:
    outcome = cut_short(tmp_path, most=4)
    assert outcome.trials["files cut short"] >= 4
    assert outcome.violations == []


def test_removed_and_exchanged_files_are_named_and_healed(tmp_path: Path) -> None:
    outcome = remove_and_exchange(tmp_path, most=10)
    assert outcome.trials["stores healed to equal bytes"] >= 10
    assert outcome.violations == []


def test_every_kind_of_object_is_damaged(tmp_path: Path) -> None:
    kinds = {kind.split("/")[0] for kind in Victim(tmp_path / "scores").kinds}
    assert kinds == {"run.json", "commits", "segments", "dictionary", "described", "exact", "facts", "index"}
