"""A run's progress: a bar on a terminal, a line now and then in a pipe or a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from gradsae_fast.render import human_bytes
from gradsae_fast.visible import visible

if TYPE_CHECKING:
    from gradsae_fast.extract import Progress as RunProgress

_LOG_SECONDS = 10.0  # between lines where there is no terminal


class ProgressBar:
    """Shows a run's progress; `update` and `message` are the callbacks of `extract`."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self.console = console
        self.bar = bar
        self.task = bar.add_task("scoring", total=None, detail="")
        self.last_line = time.monotonic()

    def message(self, text: str) -> None:
        """A sentence about a decision."""
        self.console.print(Text(visible(text)), soft_wrap=True)

    def update(self, progress: "RunProgress") -> None:
        """The state after a batch."""
        detail = _progress_line(progress)
        self.bar.update(self.task, completed=progress.num_tokens, total=progress.total_tokens, detail=detail)
        if not self.console.is_terminal and time.monotonic() - self.last_line > _LOG_SECONDS:
            self.last_line = time.monotonic()
            done = f"{progress.num_tokens}/{progress.total_tokens} tokens"
            left = f", {progress.seconds_left:.0f} s left" if progress.tokens_per_second else ""
            self.message(f"{done}, {detail}{left}")


@contextmanager
def progress_bar() -> Iterator[ProgressBar]:
    """A progress bar on standard error."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(
        *columns, TextColumn("{task.fields[detail]}"), TimeRemainingColumn(), console=console, transient=False
    ) as bar:
        bar.disable = not console.is_terminal
        yield ProgressBar(console, bar)


def _progress_line(progress: "RunProgress") -> str:
    if not progress.tokens_per_second and progress.num_tokens == progress.total_tokens:
        return "nothing was left to score"
    if not progress.tokens_per_second:
        return "speed not known yet"  # on Ray until the first task ends
    l0 = " ".join(f"{value:.1f}" for value in progress.l0.values())
    fvu = " ".join(f"{value:.3f}" for value in progress.fvu.values())
    return f"{progress.tokens_per_second:.0f} tok/s, L0 {l0}, FVU {fvu}, {human_bytes(progress.bytes_written)} written"
