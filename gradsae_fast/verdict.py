"""What `gradsae verify` says: faults and what to do about them, or how much of a store without faults is there."""

from collections.abc import Sequence

from gradsae_fast.counts import counted
from gradsae_fast.remedy import commands_of, having, incomplete
from gradsae_fast.store import Fault, ScoreStore
from gradsae_fast.store.places.place import key_below
from gradsae_fast.store.records.commits import COMMITS
from gradsae_fast.store.records.facts import FACTS
from gradsae_fast.store.records.generations import GENERATIONS, Generation
from gradsae_fast.store.records.identity import RUN_FILE
from gradsae_fast.store.sidecars.dictionary import dictionary_record
from gradsae_fast.terminal import say


def show_faults(faults: Sequence[Fault]) -> None:
    """Print what is damaged, and what heals it."""
    for fault in faults:
        say(str(fault))
    lost = ", ".join(sorted({fault.object for fault in faults if _is_beyond_repair(fault)}))
    remedy = "Run `gradsae repair`: it drops what is damaged, and says which command makes it again."
    if lost:
        remedy = f"Nothing makes {lost} again: copy the store again from where it is whole, or extract to a new folder."
    say(f"{counted(len(faults), 'fault')}. {remedy}")


def show_sound(store: ScoreStore) -> bool:
    """Print how much of a store without faults is there; return whether it has all that comes before its segments."""
    committed = f"{len(store.committed):,} of {counted(store.num_segments, 'segment')} committed"
    rest = "" if store.is_complete else f": incomplete, run {commands_of(incomplete(store))} again"
    say(f"no fault found; {committed}{rest}")
    lacks = lacking(store)
    if lacks:
        command = commands_of(lacks.values())
        say(f"lacks {', '.join(lacks)}: copy the store again, or run {command} again, which makes them anew")
    return not lacks


def lacking(store: ScoreStore) -> dict[str, Generation]:
    """Return what extracting writes before its first segment and the store lacks nevertheless, and whose run wrote it.

    A store that no segment was committed to lacks nothing: it was only begun. Nor does one that has no configuration of
    a run: a `ScoreWriter` alone wrote it.
    """
    begun = having(store.generations, store.committed)
    if not begun or "config" not in store.run:
        return {}
    wanted = {key_below(dictionary_record(store.path), store.path): begun[0], f"{FACTS}/gate.json": begun[0]}
    wanted |= {f"{FACTS}/{generation.name_of('plan')}.json": generation for generation in begun}
    return {name: generation for name, generation in wanted.items() if not (store.path / name).exists()}


def _is_beyond_repair(fault: Fault) -> bool:
    return fault.object in (RUN_FILE, COMMITS) or fault.object.partition("/")[0] == GENERATIONS
