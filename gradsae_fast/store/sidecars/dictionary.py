"""What torch-free reports need of model and SAE, once per store: the vocabulary's strings and the decoders' norms."""

from collections.abc import Iterator, Mapping, Sequence
from secrets import token_hex

import numpy as np

from gradsae_fast.errors import IdentityError
from gradsae_fast.store.arrays.stored import StoredArray, encode_array, encode_group
from gradsae_fast.store.arrays.strings import decode_strings, encode_strings
from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.layout import DICTIONARY_SITE, DICTIONARY_TOKENS, Array, component, place
from gradsae_fast.store.places.durable import make_folder, remove_temporaries
from gradsae_fast.store.places.links import PlainFolders
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import CommitRecord, publish, read_record, remove_unnamed
from gradsae_fast.store.records.objects import describe, digest_of

DICTIONARY = "dictionary"
_RECORD = "commit.json"


def dictionary_record(store: Place) -> Place:
    """Return where the record lies that makes the dictionary visible."""
    return store / DICTIONARY / _RECORD


def publish_dictionary(
    store: Place,
    tokens: Sequence[str] | None,
    decoder_norms: Mapping[str, Array],
    profile: str,
    *,
    alone: bool = True,
) -> CommitRecord:
    """Publish the dictionary by the protocol of a segment; where it is there already, compare.

    `alone` says that no other writer may be doing the same: then what a killed one left is deleted first.

    Raises:
        IdentityError: the store has another dictionary.
    """
    objects = dict(_dictionary_objects(tokens, decoder_norms, profile))
    make_folder(store / DICTIONARY)
    path = dictionary_record(store)
    if path.exists():
        commit = read_record(path)
        if commit.digest != digest_of(describe(key, data) for key, data in objects.items()):
            raise IdentityError(
                f"{store} has another dictionary (vocabulary or decoder norms); expected the one of this run: "
                "choose another folder for a new run"
            )
        return commit
    if alone:
        remove_unnamed(path)
        remove_temporaries(store / DICTIONARY)
    facts = {"tokens": None if tokens is None else len(tokens), "sites": list(decoder_norms)}
    return publish(store, f"{DICTIONARY}/{token_hex(8)}", path, objects.items(), facts)


def read_tokens(store: Place) -> list[str] | None:
    """Return the string of every vocabulary id, or None where the store has none."""
    commit = _read_commit(store)
    if commit is None or commit.facts.get("tokens") is None:
        return None
    data, offsets = (_stored(store, commit, spec.name).read() for spec in DICTIONARY_TOKENS)
    return decode_strings(data, offsets, f"{store}, dictionary, tokens")


def read_decoder_norms(store: Place, site: str) -> Array | None:
    """Return the norms float32 [C] of a site's decoder rows, or None where the store has none."""
    commit = _read_commit(store)
    if commit is None or site not in Fields(commit.facts, dictionary_record(store)).texts("sites"):
        return None
    return _stored(store, commit, f"sites/{component(site)}/{DICTIONARY_SITE[0].name}").read()


def _read_commit(store: Place) -> CommitRecord | None:
    path = dictionary_record(store)
    return read_record(path) if path.exists() else None


def _stored(store: Place, commit: CommitRecord, key: str) -> StoredArray:
    PlainFolders(store).check(f"{commit.folder}/{key}")
    return StoredArray(store / commit.folder / key, f"{store}, dictionary, {key}")


def _dictionary_objects(
    tokens: Sequence[str] | None, decoder_norms: Mapping[str, Array], profile: str
) -> Iterator[tuple[str, bytes]]:
    groups = ["", "sites", *(f"sites/{component(site)}" for site in decoder_norms)]
    arrays = []
    if tokens is not None:
        groups.append("tokens")
        data, offsets = encode_strings(tokens)
        arrays += [(s.name, s, v) for s, v in zip(DICTIONARY_TOKENS, (data, offsets), strict=True)]
    for site, norms in decoder_norms.items():
        values = {"decoder_norm": np.ascontiguousarray(norms, np.float32)}
        arrays += place(f"sites/{component(site)}", DICTIONARY_SITE, values)
    for group in groups:
        yield f"{group}/zarr.json".lstrip("/"), encode_group({})
    for path, spec, array in arrays:
        for key, encoded in encode_array(array, spec, profile).items():
            yield f"{path}/{key}", encoded
