"""What came of trials: how often something was done, and what did not hold."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Trials by what was done, and a sentence for every broken promise."""

    trials: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def count(self, what: str, times: int = 1) -> None:
        """Add to the trials of a kind."""
        self.trials[what] = self.trials.get(what, 0) + times
