"""Damage: in a store that has every kind of object, one file at a time is changed, cut short, exchanged or removed.

What must hold each time:

    `verify` finds it and names the file
    a reader that reads everything raises an error, or returns the numbers that were written and no others; that a sound
    file was exchanged with another one of its kind a reader cannot see, and `verify` does

and for every kind of object once: `repair` and the same run again bring back equal bytes.
"""

import dataclasses
import hashlib
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.durability.small_run import write_all
from gradsae_fast.errors import GradsaeError
from gradsae_fast.ranking import rank_documents, rank_latents, rank_tokens
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import open_scores, repair, verify
from gradsae_fast.store.described import Described, publish_described
from gradsae_fast.store.exact import ExactWriter
from gradsae_fast.store.identity import RUN_FILE
from gradsae_fast.store.lock import LOCK_FILE, locked
from tests.store.synthetic import SITE


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How often something was damaged, by how, and what went unnoticed or was not healed."""

    trials: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Victim:
    """A complete store and the bytes that it had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        write_everything(path)
        self.files = {file: file.read_bytes() for file in sorted(_files(path))}
        self.numbers = read_everything(path)
        self.kinds: dict[str, list[Path]] = {}
        for file in self.files:
            self.kinds.setdefault(_kind(file.relative_to(path)), []).append(file)

    def restore(self, file: Path) -> None:
        file.write_bytes(self.files[file])

    def faults_of(self, file: Path, what: str, *, of_readers: bool = True) -> list[str]:
        """What does not hold while `file` is damaged; of readers only where a file tells by itself."""
        name = str(file.relative_to(self.path))
        faults = []
        if not _is_named(self.path, name):
            faults.append(f"verify does not name {name}, {what}")
        try:
            if read_everything(self.path) != self.numbers and of_readers:
                faults.append(f"a reader returns other numbers: {name}, {what}")
        except GradsaeError:
            pass
        return faults


def flip_bits(folder: Path, times: int, seed: int = 0) -> Outcome:
    """Flip one bit, so many times: a kind of object at random, a file of it, a bit of that."""
    victim, chance, outcome = Victim(folder / "flipped"), random.Random(seed), Outcome()
    for _ in range(times):
        file = chance.choice(victim.kinds[chance.choice(list(victim.kinds))])
        data, bit = bytearray(victim.files[file]), chance.randrange(8 * len(victim.files[file]))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        outcome.violations += victim.faults_of(file, f"bit {bit} flipped")
        victim.restore(file)
    outcome.trials["bits flipped"] = times
    return outcome


def cut_short(folder: Path, most: int | None = None, seed: int = 0) -> Outcome:
    """Cut one file of every kind to every shorter length, or to `most` of those lengths, drawn at random."""
    victim, chance, outcome = Victim(folder / "cut"), random.Random(seed), Outcome()
    cuts = [(files[0], length) for files in victim.kinds.values() for length in range(len(victim.files[files[0]]))]
    for file, length in cuts if most is None else chance.sample(cuts, min(most, len(cuts))):
        file.write_bytes(victim.files[file][:length])
        outcome.violations += victim.faults_of(file, f"cut to {length} bytes")
        victim.restore(file)
        outcome.trials["files cut short"] = outcome.trials.get("files cut short", 0) + 1
    return outcome


def remove_and_exchange(folder: Path, most: int | None = None, seed: int = 0) -> Outcome:
    """Remove a file of every kind (or of `most` kinds, drawn at random), exchange two of it; heal each time."""
    outcome = Outcome(trials={"files removed": 0, "files exchanged": 0, "stores healed": 0})
    victim = Victim(folder / "healed")
    kinds = list(victim.kinds) if most is None else random.Random(seed).sample(list(victim.kinds), most)
    for kind in kinds:
        file, files = victim.kinds[kind][0], victim.kinds[kind]
        file.unlink()
        # Without its record a segment is one that is still to be written, and a sidecar one that never was.
        if not re.search(r"(commits|facts)/|commit\.json|^index/\*\.json", kind):
            outcome.violations += victim.faults_of(file, "removed")
            outcome.trials["files removed"] += 1
        outcome.violations += _heal(victim, f"{kind} removed")
        outcome.trials["stores healed"] += 1
        other = next((o for o in files[1:] if victim.files[o] != victim.files[file]), None)
        if other is not None:
            file.write_bytes(victim.files[other])
            outcome.violations += victim.faults_of(file, "exchanged", of_readers=False)
            outcome.trials["files exchanged"] += 1
            outcome.violations += _heal(victim, f"{kind} exchanged")
            outcome.trials["stores healed"] += 1
    return outcome


def _heal(victim: Victim, what: str) -> list[str]:
    """Repair the damaged store and run again; then put the very files back, as new attempts have other names."""
    faults = []
    try:
        repair(victim.path)
        write_everything(victim.path)
        faults += [f"after repair and the same run, {what}: {fault}" for fault in verify(victim.path)]
        if read_everything(victim.path) != victim.numbers:
            faults.append(f"repair and the same run bring back other bytes: {what}")
    except GradsaeError as error:
        if RUN_FILE not in what:  # from which everything else follows
            faults.append(f"repair fails: {what}: {error}")
    shutil.rmtree(victim.path)
    for file, data in victim.files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return faults


def write_everything(path: Path) -> None:
    """Write what a store can hold, or what is missing of it."""
    write_all(path)
    store = open_scores(path)
    with locked(path):
        dense = {SITE: np.array([0, 3])}
        exact = ExactWriter(path, store.segments, store.profile, share=0.2, dense=dense)
        for segment in store.segments:
            if segment.index not in exact.committed:
                drop_MK = np.ones((segment.num_documents, 2), np.float32)
                exact.write(segment, {(SITE, objective): drop_MK for objective in store.objectives})
        if store.described(SITE) is None:
            publish_described(path, {SITE: _described(store.num_latents(SITE))}, store.profile)
    if open_scores(path).index is None:
        build_index(path, leaders=2)


def _described(num_latents: int) -> Described:
    ids, values = np.ones((num_latents, 2), np.uint32), np.ones((num_latents, 2), np.float32)
    return Described(
        promoted_CT=ids,
        promoted_effect_CT=values,
        suppressed_CT=ids,
        suppressed_effect_CT=values,
        neighbours_CK=ids,
        cosine_CK=values,
    )


def read_everything(path: Path) -> str:
    """Digest of all numbers and texts that a reader can get from a store, and of the answers that need its index."""
    store, digest = open_scores(path), hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
        elif dataclasses.is_dataclass(value):
            take([getattr(value, one.name) for one in dataclasses.fields(value)])
        elif isinstance(value, Mapping):
            take([*value.items()])
        elif isinstance(value, list | tuple):
            for one in value:
                take(one)
        else:
            digest.update(repr(value).encode("utf-8", "surrogatepass"))

    take([store.identity, store.num_segments, store.token_strings(), store.decoder_norms(SITE), store.described(SITE)])
    take(store.facts("gate"))
    for segment in store.segments:
        site = segment.site(SITE)
        take([segment.digest, segment.tokens(), segment.documents(), segment.counted_tokens(), site.by_token()])
        take([site.by_latent(latent) for latent in range(site.num_latents)])
        take([site.document_sums(), site.latent_stats()])
    effects = store.exact_dense()
    assert effects is not None
    take([effects.drops(segment.index, SITE, name) for segment in store.segments for name in store.objectives])
    for table in (rank_latents(store), rank_tokens(store, latent=3), rank_documents(store, latent=3)):
        take(table.to_pylist())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file() and file.name != LOCK_FILE)


def _kind(name: Path) -> str:
    """The name without numbers of segments and names of attempts."""
    return re.sub(r"\b[0-9a-f]{16}\b", "*", re.sub(r"\b\d{6}\b", "#", str(name)))


def _is_named(path: Path, name: str) -> bool:
    try:
        return any(fault.object == name for fault in verify(path))
    except GradsaeError as error:
        return name in str(error)
