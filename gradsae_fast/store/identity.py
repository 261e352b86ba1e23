"""What makes a store the store of one run: `run.json`, and the comparison when a run is resumed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsae_fast.errors import IdentityError, StoreError
from gradsae_fast.method import PRECISION_BITS
from gradsae_fast.store.codecs import PROFILES, check_choice
from gradsae_fast.store.commits import check_version
from gradsae_fast.store.durable import create_exclusive, document_bytes, read_document
from gradsae_fast.store.encoding import Encoding
from gradsae_fast.store.layout import FORMAT_VERSION, STORE_FORMAT

RUN_FILE = "run.json"
_ABSENT = "(absent)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """`run.json`: `identity` and `num_segments` and `encoding` are compared on resume, `run` is not."""

    identity: dict[str, Any]
    run: dict[str, Any]
    num_segments: int
    encoding: Encoding

    def compared(self) -> dict[str, Any]:
        """Return everything that a resumed run must share."""
        settings = {
            "num_segments": self.num_segments,
            "precision_bits": self.encoding.precision_bits,
            "profile": self.encoding.profile,
            "aggregates_include_special": self.encoding.aggregates_include_special,
        }
        return {"identity": self.identity, "settings": settings}

    def to_document(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {**self.compared(), "format": STORE_FORMAT, "format_version": FORMAT_VERSION, "run": self.run}


def read_run(store: Path) -> RunRecord:
    """Read the `run.json` of a store.

    Raises:
        StoreError: there is no store, or the record is damaged.
        FormatError: written by a newer release.
    """
    path = store / RUN_FILE
    try:
        document = read_document(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(_absent(store)) from error
    if document.get("format") != STORE_FORMAT:
        raise StoreError(f"{path} has format {document.get('format')!r}; expected {STORE_FORMAT!r}: not such a store")
    check_version(path, document)
    settings = document["settings"]
    encoding = Encoding(
        precision_bits=settings["precision_bits"],
        profile=settings["profile"],
        aggregates_include_special=settings["aggregates_include_special"],
    )
    return RunRecord(
        identity=document["identity"], run=document["run"], num_segments=settings["num_segments"], encoding=encoding
    )


def _absent(store: Path) -> str:
    if not store.exists():
        return f"{store} does not exist; expected a store written by `gradsae extract --out`: check the path"
    if (store / "commits").is_dir() or (store / "segments").is_dir():
        return f"{store} has segments but no {RUN_FILE}: it looks half-copied; copy the whole folder again"
    return f"{store} is not a store: it has no {RUN_FILE}; expected a folder written by `gradsae extract --out`"


def create_or_compare(store: Path, asked: RunRecord) -> RunRecord:
    """Write `run.json` where there is none; else compare it and return the one that is there.

    Raises:
        StoreError: a setting that the format does not have.
        IdentityError: the store belongs to another run; shows the differing fields side by side.
    """
    check_choice("profile", asked.encoding.profile, PROFILES)
    check_choice("precision_bits", asked.encoding.precision_bits, PRECISION_BITS)
    data = document_bytes(asked.to_document())
    if not (store / RUN_FILE).exists():
        create_exclusive(store / RUN_FILE, data)
    stored = read_run(store)
    differing = _differences(stored.compared(), json.loads(data))
    if differing:
        raise IdentityError(_side_by_side(store, differing))
    return stored


def _differences(stored: dict[str, Any], asked: dict[str, Any]) -> list[tuple[str, str, str]]:
    left, right = (dict(_fields(part)) for part in (stored, {key: asked[key] for key in stored}))
    names = sorted(left.keys() | right.keys())
    rows = ((name, left.get(name, _ABSENT), right.get(name, _ABSENT)) for name in names)
    return [row for row in rows if row[1] != row[2]]


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, canonical JSON) of every leaf; JSON text, so that NaN equals NaN."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value, sort_keys=True)


def _side_by_side(store: Path, differing: list[tuple[str, str, str]]) -> str:
    rows = [("field", "in the store", "asked for"), *differing]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    table = "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)
    return (
        f"{store} belongs to another run; these fields differ:\n{table}\n"
        "Run with the store's settings to resume it, or choose another folder for a new run."
    )
