"""The command line inside the test's own process: what a user types, and what the terminal answers."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from gradsae_fast.cli import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Exit status, standard output and standard error of one command."""

    status: int
    out: str
    err: str


def gradsae(*words: object) -> Answer:
    """Run `gradsae WORDS` in process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["gradsae", *map(str, words)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return Answer(status=int(stop.value.code or 0), out=out.getvalue(), err=err.getvalue())
