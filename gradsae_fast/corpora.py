"""What a store has of each of its corpora, and what was dropped from them, as `gradsae info` shows it."""

from collections.abc import Mapping
from typing import Any

from gradsae_fast.counts import counted
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.keys import KnownKeys
from gradsae_fast.store.records.generations import Generation
from gradsae_fast.store.records.revisions import read_revisions


def corpora_facts(store: ScoreStore) -> list[dict[str, Any]]:
    """Return, as JSON values, what is there of each generation: segments of its plan, and those that readers see."""
    return [_facts(store, generation) for generation in store.generations]


def _facts(store: ScoreStore, generation: Generation) -> dict[str, Any]:
    segments = [segment for segment in store.segments if segment.index in generation.segments]
    return {
        "generation": generation.number,
        "corpus": generation.run.get("config", {}).get("corpus", {}).get("path"),
        "segments": len(segments),
        "committed": sum(number in generation.segments for number in store.committed),
        "planned_segments": generation.num_segments,
        "documents": sum(segment.num_documents for segment in segments),
        "tokens": sum(segment.num_tokens for segment in segments),
        "closed": generation.is_closed,
    }


def corpus_line(facts: Mapping[str, Any]) -> str:
    """Return a line about one of `corpora_facts`."""
    now = "" if facts["segments"] == facts["committed"] else f", in {facts['segments']:,} now"
    state = "; merged with documents dropped or segments compacted: not to be resumed" if facts["closed"] else ""
    return (
        f"{facts['generation']}: {facts['corpus'] or 'not recorded'}; {facts['committed']:,} of "
        f"{counted(facts['planned_segments'], 'segment')}{now}, {counted(facts['documents'], 'document')}, "
        f"{counted(facts['tokens'], 'token')}{state}"
    )


def dropped_line(store: ScoreStore) -> str:
    """Return a line about the documents that were dropped: a key of theirs may have come back with another corpus.

    Raises:
        StoreError: a revision or a segment is damaged.
    """
    keys = sorted({one.key for revision in read_revisions(store.path) for one in revision.dropped})
    used = KnownKeys(store.segments).common(keys)
    again = f"; {counted(len(used), 'key')} of theirs in use again, by what was appended since" if used else ""
    return f"{counted(store.num_dropped, 'document')}, for good{again}"
