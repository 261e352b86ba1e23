"""The command that carries out the long trials: its page, and going on where it was stopped."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.durability import __main__ as command
from benchmarks.durability.outcome import Outcome
from benchmarks.durability.pieces import Piece, pieces

Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with these pieces in place of the real ones."""

    def run_it(*listed: Piece, options: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(command, "pieces", lambda options: listed)
        monkeypatch.setattr(sys, "argv", ["durability", "--out", str(tmp_path), "--work", str(tmp_path), *options])
        command.main()

    return run_it


def piece(kind: str, seed: int, trials: int, *violations: str) -> Piece:
    outcome = Outcome(trials={"power cut": trials}, violations=list(violations))
    return Piece(kind=kind, seed=seed, do=lambda folder: outcome)


def refuse(folder: Path) -> Outcome:
    raise AssertionError("this piece was done before")


def page_in(folder: Path) -> str:
    (path,) = folder.glob("*-durability.md")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("violations", [(), ("segment 3 was lost",)])
def test_the_command_writes_a_page_and_fails_where_a_promise_is_broken(
    tmp_path: Path, run: Run, violations: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) if violations else nullcontext():
        run(piece("power", 0, 300), piece("power", 1, 200, *violations))
    assert f"| power cut | 500 | {len(violations)} | 6.0e-03 |" in page_in(tmp_path)
    assert all(violation in page_in(tmp_path) for violation in violations)


def test_a_command_that_was_stopped_goes_on_with_the_next_piece(tmp_path: Path, run: Run) -> None:
    with pytest.raises(AssertionError, match="done before"):
        run(piece("power", 0, 300), Piece(kind="power", seed=1, do=refuse))
    run(Piece(kind="power", seed=0, do=refuse), piece("power", 1, 200))
    assert "| power cut | 500 | 0 |" in page_in(tmp_path)


def test_only_the_kinds_that_are_asked_for_are_done(tmp_path: Path, run: Run) -> None:
    run(Piece(kind="power", seed=0, do=refuse), piece("flips", 0, 7), options=("--only", "flips,cuts"))
    assert "| power cut | 7 | 0 |" in page_in(tmp_path)


def test_parts_that_ran_apart_are_put_together(tmp_path: Path, run: Run) -> None:
    (tmp_path / "apart").mkdir()
    listed = [piece("power", seed, 100) for seed in range(4)]
    run(*listed, options=("--part", "1/4", "--out", str(tmp_path / "apart")))
    assert "| power cut | 100 | 0 |" in page_in(tmp_path / "apart")
    (found,) = (tmp_path / "apart").glob("*.json")
    refused = Piece(kind="power", seed=1, do=refuse)
    run(listed[0], refused, *listed[2:], options=("--add", str(found)))
    assert "| power cut | 400 | 0 |" in page_in(tmp_path)


def test_the_pieces_add_up_to_what_is_asked_for_and_each_has_a_seed_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["durability", "--out", "out", "--kills", "1200"])
    listed = list(pieces(command._options()))
    assert len({(one.kind, one.seed) for one in listed}) == len(listed)
    kills = [one.do.args for one in listed if one.kind == "kills-extract"]  # type: ignore[attr-defined]
    assert [arguments[1] for arguments in kills] == [500, 500, 200]
    assert [arguments[2] for arguments in kills] == [0, 1, 2]
