"""Which commands make what a store lacks: each of its corpora was scored by a command of its own."""

from collections.abc import Collection, Iterable

from gradsae_fast.store import ScoreStore
from gradsae_fast.store.records.generations import Generation


def commands_of(generations: Iterable[Generation]) -> str:
    """Name the commands that score these generations."""
    return " and ".join(dict.fromkeys(map(_command, generations)))


def incomplete(store: ScoreStore) -> list[Generation]:
    """Return the generations that segments are missing of."""
    return [
        generation
        for generation in store.generations
        if sum(number in generation.segments for number in store.committed) < generation.num_segments
    ]


def having(generations: Iterable[Generation], segments: Collection[int]) -> list[Generation]:
    """Return the generations that any of these segments belongs to."""
    return [generation for generation in generations if any(number in generation.segments for number in segments)]


def _command(generation: Generation) -> str:
    if generation.is_closed:
        return "the same `gradsae merge` command"
    if generation.number:
        return f"`gradsae append` with the corpus of generation {generation.number}"
    return "the same `gradsae extract` command"
