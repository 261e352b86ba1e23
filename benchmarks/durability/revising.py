"""Commands that write parts of a store anew: documents dropped, small segments made into one."""

from pathlib import Path

from benchmarks.durability.everything import write_everything
from benchmarks.durability.scenario import Scenario
from gradsae_fast.store.changes.compact import compact_segments
from gradsae_fast.store.changes.drop import drop_documents

_DROPPED = ("0a1b-1-0", "0a1b-2-0", "0a1b-2-1")  # a document of one segment, and all those of another


def drop(folder: Path) -> Scenario:
    """Documents are dropped from two segments of a store that has everything, of one all of them."""
    before = folder / "before-drop"
    write_everything(before)
    return Scenario(
        name="drop", before=before, act=lambda store, acknowledge: drop_documents(store, _DROPPED), promise="at once"
    )


def compact(folder: Path) -> Scenario:
    """Four small segments are made into one, after a document was dropped from one of them."""
    before = folder / "before-compact"
    write_everything(before)
    drop_documents(before, _DROPPED[:1])
    return Scenario(
        name="compact", before=before, act=lambda store, acknowledge: compact_segments(store), promise="at once"
    )
