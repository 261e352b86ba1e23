"""What a site's decoder rows say, kept beside the scores: the tokens that each latent promotes, and its neighbours.

A latent promotes or suppresses vocabulary tokens by its direct logit effects, and its neighbours are the latents whose
decoder rows point most nearly its way. Both follow from the model and the SAE alone, so `gradsae describe STORE --all`
computes them once and readers, a report among them, need neither.

The folder `described` holds one Zarr group and `commit.json`, which makes it visible; published by the steps of a
segment. Writing again puts a new group beside the old one, swaps the record in one step and then deletes the old group:
whoever opens the store finds the old tables or the new ones, whole.

Letters: C latents, T tokens on each side, K neighbours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.store.arrays.encoding import group_objects
from gradsae_fast.store.arrays.stored import StoredArray
from gradsae_fast.store.format.claims import MOST_LATENTS
from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.layout import (
    DESCRIBED,
    DESCRIBED_FORMAT,
    FORMAT_VERSION,
    Array,
    ArraySpec,
    component,
    place,
)
from gradsae_fast.store.places.durable import (
    TEMPORARY,
    make_folder,
    move,
    remove_temporaries,
    remove_tree,
    storage_errors,
)
from gradsae_fast.store.places.links import PlainFolders
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import CommitRecord, missing_objects, publish, read_record, remove_unnamed

FOLDER = "described"
_RECORD = "commit.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Described:
    """What the decoder rows of a site say; effects are logits above the vocabulary's mean (`describe.logits`).

    T is 0 at a site that does not write into the residual stream, whose rows have no direct effect on the logits.
    """

    promoted_CT: Array  # uint32 vocabulary ids, most promoted first
    promoted_effect_CT: Array  # float32
    suppressed_CT: Array  # uint32 vocabulary ids, most suppressed first
    suppressed_effect_CT: Array  # float32
    neighbours_CK: Array  # uint32 latents, largest cosine first, itself left out
    cosine_CK: Array  # float32

    def __post_init__(self) -> None:
        shapes = [getattr(self, field).shape for field in _SPECS]
        tokens, neighbours = set(shapes[:4]), set(shapes[4:])
        one_each = len(tokens) == len(neighbours) == 1 and {len(shape) for shape in shapes} == {2}
        if not one_each or shapes[0][0] != shapes[4][0]:
            raise StoreError(f"got tables of shapes {shapes}; expected [C, T] four times and [C, K] twice")


_SPECS = dict(zip(Described.__dataclass_fields__, DESCRIBED, strict=True))  # where each table lies


def described_record(store: Place) -> Place:
    """Return where the record lies that makes the tables visible."""
    return store / FOLDER / _RECORD


def publish_described(store: Place, sites: Mapping[str, Described], profile: str) -> CommitRecord:
    """Write the tables of all `sites`, in the place of any that were there; for the holder of the writer's lock.

    Args:
        store: the store's folder.
        sites: what the rows of each site say.
        profile: codec profile of the store.

    Raises:
        StoreError: the disk is full, read-only or broken; the old tables stay.
    """
    folder, path = store / FOLDER, described_record(store)
    facts = {"sites": [_site_facts(name, described) for name, described in sites.items()]}
    with storage_errors(store):
        make_folder(folder)
        remove_temporaries(folder)
        before = _folder_before(store)
        unseen = folder / f"{TEMPORARY}{token_hex(8)}"
        commit = publish(store, f"{FOLDER}/{token_hex(8)}", unseen, _objects(sites, profile), facts)
        move(unseen, path)
        if isinstance(store, Path):
            remove_unnamed(path)
        elif before is not None:  # and nothing else: it may be what another process is writing
            remove_tree(store / before)
    return commit


def _folder_before(store: Place) -> str | None:
    """The folder of the tables that are there, as their record names it; None where it is damaged, or there is none."""
    try:
        commit = _read_commit(store)
    except StoreError:
        return None
    return None if commit is None else commit.folder


def read_described(store: Place, site: str) -> Described | None:
    """Return what a site's decoder rows say, or None where it was never computed.

    Raises:
        StoreError: damaged.
        FormatError: written by a newer release.
    """
    commit = _read_commit(store)
    while commit is not None:
        try:
            return _read(store, commit, site)
        except StoreError:
            # Written anew meanwhile, the old tables are gone and the new ones are there.
            latest = _read_commit(store)
            if latest is None or latest.folder == commit.folder:
                raise
            commit = latest
    return None


def _read_commit(store: Place) -> CommitRecord | None:
    try:
        return read_record(described_record(store))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(store: Place, commit: CommitRecord, site: str) -> Described | None:
    fields = Fields(commit.facts, described_record(store))
    facts = next((found for found in fields.each("sites") if found.text("name") == site), None)
    if facts is None:
        return None
    faults = missing_objects(store, commit)
    if faults:
        key, what = faults[0]
        raise StoreError(
            f"{store}: what its decoder rows say is damaged: {commit.folder}/{key} {what}; run `gradsae describe "
            f"{store} --all` again"
        )
    tables = {}
    num_latents = facts.count("num_latents", MOST_LATENTS)
    for field, spec in _SPECS.items():
        width = facts.count("neighbours" if field in ("neighbours_CK", "cosine_CK") else "tokens")
        values = _array(store, commit, site, spec)  # its length is looked at before it is read
        if len(values) != num_latents * width:
            raise StoreError(
                f"{described_record(store)} is damaged: {spec.name} has {len(values)} entries; expected "
                f"{num_latents} x {width}: run `gradsae describe {store} --all` again"
            )
        tables[field] = values.read().reshape(num_latents, width)
    return Described(**tables)


def _array(store: Place, commit: CommitRecord, site: str, spec: ArraySpec) -> StoredArray:
    path = f"{commit.folder}/sites/{component(site)}/{spec.name}"
    PlainFolders(store).check(path)
    return StoredArray(store / path, f"{store}, {path}")


def _site_facts(name: str, described: Described) -> dict[str, Any]:
    num_latents, tokens = described.promoted_CT.shape
    neighbours = described.cosine_CK.shape[1]
    return {"name": name, "num_latents": num_latents, "tokens": tokens, "neighbours": neighbours}


def _objects(sites: Mapping[str, Described], profile: str) -> Iterator[tuple[str, bytes]]:
    attributes: dict[str, dict[str, Any]] = {"": {"format": DESCRIBED_FORMAT, "format_version": FORMAT_VERSION}}
    parts = []
    for site, described in sites.items():
        group = f"sites/{component(site)}"
        attributes[group] = {"site": site, "num_latents": len(described.promoted_CT)}
        values = {
            spec.name: np.ascontiguousarray(getattr(described, field), spec.dtype).ravel()
            for field, spec in _SPECS.items()
        }
        parts.append(place(group, DESCRIBED, values))
    return group_objects(parts, attributes, profile)
