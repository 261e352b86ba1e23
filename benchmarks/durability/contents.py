"""What a store holds, in forms that can be compared with those of another store of the same run."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.places.lock import LOCK_FILE
from gradsae_fast.store.records.commits import COMMITS, read_record
from gradsae_fast.store.records.identity import RUN_FILE
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.described import described_record
from gradsae_fast.store.sidecars.dictionary import dictionary_record
from gradsae_fast.store.sidecars.index import INDEX
from gradsae_fast.store.verify import DROPPED

_OF_AN_ATTEMPT = ("checksum", "run", "writer")  # fields of JSON documents that differ from start to start
_ATTEMPT = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")


def view(store: Path) -> dict[str, str]:
    """The digest of everything that a reader can see, by name; empty before there is anything."""
    if not (store / RUN_FILE).exists() or not (store / COMMITS).exists():
        return {}
    opened = open_scores(store, use_index=False)
    seen = {f"segment {segment.index}": segment.digest for segment in opened.segments}
    for name, path in (("dictionary", dictionary_record(store)), ("described", described_record(store))):
        if path.exists():
            seen[name] = read_record(path).digest
    return seen | _effects(opened)


def _effects(store: ScoreStore) -> dict[str, str]:
    """Digests of the exact effects of each segment; none where they cannot be read."""
    try:
        effects = store.exact_dense()
    except StoreError:
        return {}
    if effects is None:
        return {}
    seen = {}
    for index in sorted({segment.index for segment in store.segments} - set(effects.missing)):
        drops = [effects.drops(index, site, name) for site in store.sites for name in store.objectives]
        seen[f"exact effects of segment {index}"] = digest(drops)
    return seen


def numbers(segment: StoredSegment) -> str:
    """Digest of all that a reader gets from a segment."""
    taken: list[Any] = [segment.tokens(), segment.documents(), segment.counted_tokens()]
    for described in segment.summary.facts["sites"]:
        site = segment.site(described["name"])
        taken += [site.by_token(), site.document_sums(), site.latent_stats()]
        taken += [site.by_latent(latent) for latent in range(site.num_latents)]
    return digest(taken)


def digest(value: Any) -> str:
    """Digest of numbers, texts, arrays, and dataclasses, mappings, lists and tuples of these."""
    taken = hashlib.sha256()
    _take(taken, value)
    return taken.hexdigest()


def _take(taken: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        taken.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
    elif dataclasses.is_dataclass(value):
        _take(taken, [getattr(value, one.name) for one in dataclasses.fields(value)])
    elif isinstance(value, Mapping):
        _take(taken, [*value.items()])
    elif isinstance(value, list | tuple):
        for one in value:
            _take(taken, one)
    else:
        taken.update(repr(value).encode("utf-8", "surrogatepass"))


def contents(store: Path) -> Counter[tuple[str, bytes]]:
    """Every folder, and every file with its bytes, but for names of attempts and who wrote when; each so often.

    The index names attempts inside, so of it only the names of its files count; what it says is compared by answers.
    """
    found: Counter[tuple[str, bytes]] = Counter()
    for path in store.rglob("*"):
        name = str(path.relative_to(store))
        if name != LOCK_FILE and not name.startswith(DROPPED):
            is_plain = path.is_dir() or name.startswith(f"{INDEX}/")
            found[_ATTEMPT.sub("*", name), b"" if is_plain else _content(path)] += 1
    return found


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".json" or path.name == "zarr.json":
        return data
    return _ATTEMPT.sub("*", json.dumps(_of_every_attempt(json.loads(data)), sort_keys=True)).encode()


def _of_every_attempt(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _of_every_attempt(inner) for name, inner in value.items() if name not in _OF_AN_ATTEMPT}
    return [_of_every_attempt(inner) for inner in value] if isinstance(value, list) else value
