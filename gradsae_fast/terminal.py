"""How text of unknown origin reaches standard output and standard error: no terminal obeys what is in it."""

import sys

from gradsae_fast.visible import visible, visible_lines


def say(line: str, *, err: bool = False) -> None:
    """Print one line for people, made visible."""
    print(visible(line), file=sys.stderr if err else sys.stdout)


def tell(line: str) -> None:
    """Print one line about a decision, made visible, on standard error."""
    say(line, err=True)


def print_file(text: str) -> None:
    """Print what is a file, like json or csv: as it is into a pipe or a file, made visible on a terminal."""
    print(visible_lines(text) if sys.stdout.isatty() else text, end="")
