"""The files of a result, which are always whole: a run that is cut off keeps what it has measured."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.end_to_end.case import Outcome
from benchmarks.gpu.end_to_end.page import page


class Files:
    """A result, and the two files that it is kept in: JSON at `path`, and a page beside it."""

    def __init__(self, path: Path, result: dict[str, Any]) -> None:
        self.path, self.result = path, result
        self.outcomes = [Outcome.from_json(values) for values in result["cases"]]

    def put(self, outcome: Outcome) -> None:
        """Take the place of the case's outcome, and write the files."""
        self.outcomes = [one for one in self.outcomes if one.case != outcome.case] + [outcome]
        self.result["cases"] = [one.as_json() for one in self.outcomes]
        _replace(self.path, json.dumps(self.result, indent=1) + "\n")
        _replace(self.path.with_suffix(".md"), page(self.result))


def _replace(path: Path, text: str) -> None:
    """A reader finds the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
