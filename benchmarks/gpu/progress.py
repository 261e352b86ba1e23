"""What a measuring process has done so far, one JSON value per line, so that its death costs one variant, not the run.

`begin` and `ready` stand around the first call of a variant: a process that died in between was killed by it. The next
process reads the file, leaves that variant out, and goes on with the first shape that is not done.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.row import Row, Status
from benchmarks.gpu.shape import Shape


@dataclass(frozen=True, slots=True)
class Progress:
    """The file; everything is read from it anew."""

    path: Path

    def write(self, event: str, value: Any) -> None:
        """Append one event and let it reach the disk's cache, where the death of this process does not undo it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([event, value]) + "\n")

    def events(self, *names: str) -> list[Any]:
        """The values of these events, in order."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [value for event, value in map(json.loads, lines) if event in names]

    def rows(self) -> list[Row]:
        """All lines of the table so far."""
        return [Row.from_json(values) for values in self.events("row")]

    def is_done(self, shape: Shape) -> bool:
        """Whether the shape's lines are all written."""
        return str(shape) in self.events("done")

    def deaths(self, shape: Shape) -> dict[str, str]:
        """Variants of the shape that killed a process, and how."""
        return {key: reason for name, key, reason in self.events("died") if name == str(shape)}

    def blame(self, shapes: tuple[Shape, ...], reason: str) -> None:
        """After a death: note the variant that was running, or give up the shape if it was none."""
        open_ = [value for value in self.events("begin") if value not in self.events("ready", "survived")]
        if open_:
            shape_name, key = open_[-1]
            self.write("died", [shape_name, key, reason])
            self.write("survived", [shape_name, key])
            return
        shape = next((shape for shape in shapes if not self.is_done(shape)), None)
        if shape is not None:
            self.give_up(shape, Status.FAILED, f"{reason}, outside the first call of any variant")

    def give_up(self, shape: Shape, status: Status, reason: str) -> None:
        """One line for all variants of a shape."""
        self.write("row", Row.missing(shape, "all", "all", status, reason).as_json())
        self.write("done", str(shape))
