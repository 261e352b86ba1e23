"""What holds for the options of every verb: one value is typed once, and what is written to a disk lies on a disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gradsae_fast.cli import app
from tests.terminal import gradsae

TAKES_STORES = {("extract",), ("merge",)}  # their --out may lie in a bucket


def verbs(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words and the command of every verb."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*words, name))
    if words and not hasattr(command, "commands"):
        yield words, command


VERBS = dict(verbs(typer.main.get_command(app)))
OUTPUTS = [
    (*words, f"--{option.name}")
    for words, command in VERBS.items()
    for option in command.params
    if option.name in ("out", "output") and words not in TAKES_STORES
]


def single(command: Any) -> list[Any]:
    """The options of a verb that take one value, or none."""
    return [param for param in command.params if param.param_type_name == "option" and not param.multiple]


def flat(text: str) -> str:
    """Without the frame and the line breaks that a terminal of eighty columns makes."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_an_option_of_any_verb_that_takes_one_value_is_refused_when_it_is_typed_twice(words: tuple[str, ...]) -> None:
    for option in single(VERBS[words])[:3]:
        typed = [option.opts[0]] if option.is_flag else [option.opts[0], "1"]
        answer = gradsae(*words, *typed, *typed)
        assert answer.status == 2
        assert option.opts[0] in answer.err
        assert "is given 2 times; expected once" in flat(answer.err)


def test_drop_with_two_conditions_drops_nothing_and_says_how_to_join_them(tmp_path: Path) -> None:
    answer = gradsae("drop", tmp_path, "--where", "party=R", "--where", "year>=1995")
    assert (answer.status, answer.out) == (2, "")
    assert "--where is given 2 times" in flat(answer.err)
    assert "join conditions by commas: 'party=R, year>=1995'" in flat(answer.err)


@pytest.mark.parametrize(
    "typed",
    [
        *(["contrast", "S", "--a", "x=1", "--a=x=2"], ["contrast", "S", "--a", "x=1", "--b", "x=2", "--b", "x=3"]),
        *(
            ["rank", "latents", "S", "-k", "3", "-k4"],
            ["rank", "latents", "S", "--include-special", "--exclude-special"],
        ),
        ["report", "S", "-o", "one", "--out", "two"],
    ],
    ids=" ".join,
)
def test_no_spelling_lets_the_last_of_two_values_win(typed: list[str]) -> None:
    answer = gradsae(*typed)
    assert answer.status == 2
    assert "is given 2 times" in flat(answer.err)


def test_options_that_collect_values_are_repeated_as_before() -> None:
    answer = gradsae("rank", "latents", "nowhere", "--document", "a", "--document", "b")
    assert (answer.status, "nowhere does not exist" in answer.err) == (1, True)


@pytest.mark.parametrize("words", OUTPUTS, ids=" ".join)
def test_an_output_in_object_storage_is_refused_before_any_work(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = gradsae(*words, "s3://bucket/audit")
    assert (answer.status, answer.out) == (2, "")
    assert f"'{words[-1]}'" in answer.err
    assert "cannot lie in object storage; expected a path on a disk" in flat(answer.err)
    assert not list(tmp_path.iterdir())


def test_a_jacobian_store_in_object_storage_is_refused_by_its_reader() -> None:
    answer = gradsae("jacobian", "rank", "s3://trials/speeches.jacobian")
    assert answer.status == 2
    assert "cannot lie in object storage; expected a path on a disk" in flat(answer.err)


def test_an_error_that_repeats_hostile_text_does_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    answer = gradsae("info", tmp_path / "\x1b]0;owned\x07")
    assert (answer.status, "␛]0;owned␇ does not exist" in answer.err) == (1, True)
