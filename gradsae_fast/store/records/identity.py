"""What makes a store the store of one run: `run.json`, and the comparison when a run is resumed."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gradsae_fast.errors import IdentityError, StoreError
from gradsae_fast.method import PRECISION_BITS
from gradsae_fast.store.arrays.encoding import Encoding
from gradsae_fast.store.format.codecs import PROFILES, check_choice
from gradsae_fast.store.format.fields import MOST_SEGMENTS, Fields
from gradsae_fast.store.format.layout import RUN_VERSION, RUN_VERSIONS, STORE_FORMAT
from gradsae_fast.store.places.durable import create_exclusive, document_bytes, read_document
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import check_version

RUN_FILE = "run.json"
_ABSENT = "(absent)"
_ADVICE = "Run with the store's settings to resume it, or choose another folder for a new run."


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """`run.json`: `identity`, `num_segments` and `encoding` are compared on resume, `run` is not.

    A closed run has segments that its plan does not have, or lacks some on purpose; it is never resumed.
    """

    identity: dict[str, Any]
    run: dict[str, Any]
    num_segments: int
    encoding: Encoding
    closed: bool = False
    format_version: int = RUN_VERSION

    def compared(self) -> dict[str, Any]:
        """Return everything that a resumed run must share."""
        settings: dict[str, Any] = {
            "num_segments": self.num_segments,
            "precision_bits": self.encoding.precision_bits,
            "profile": self.encoding.profile,
            "aggregates_include_special": self.encoding.aggregates_include_special,
        }
        if self.closed:
            settings["closed"] = True
        return {"identity": self.identity, "settings": settings}

    def to_document(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {**self.compared(), "format": STORE_FORMAT, "format_version": self.format_version, "run": self.run}


def read_run(store: Place) -> RunRecord:
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
    return run_from_document(path, document, STORE_FORMAT)


def run_from_document(path: Place, document: dict[str, Any], format: str) -> RunRecord:
    """Return what `run.json`, or the record of a generation, says.

    Raises:
        StoreError: it is something else, or a field is missing or malformed.
        FormatError: written by a newer release.
    """
    if document.get("format") != format:
        raise StoreError(f"{path} has format {document.get('format')!r}; expected {format!r}: not such a store")
    check_version(path, document, RUN_VERSIONS)
    fields = Fields(document, path)
    settings = fields.inside("settings")
    encoding = Encoding(
        precision_bits=settings.count("precision_bits"),
        profile=settings.text("profile"),
        aggregates_include_special=settings.flag("aggregates_include_special"),
    )
    return RunRecord(
        identity=fields.mapping("identity"),
        run=fields.mapping("run"),
        num_segments=settings.count("num_segments", MOST_SEGMENTS),
        encoding=encoding,
        closed="closed" in settings and settings.flag("closed"),
        format_version=fields.count("format_version"),
    )


def _absent(store: Place) -> str:
    if not store.exists():
        return f"{store} does not exist; expected a store written by `gradsae extract --out`: check the path"
    if (store / "commits").is_dir() or (store / "segments").is_dir():
        return f"{store} has segments but no {RUN_FILE}: it looks half-copied; copy the whole folder again"
    return f"{store} is not a store: it has no {RUN_FILE}; expected a folder written by `gradsae extract --out`"


def create_or_compare(store: Place, asked: RunRecord) -> RunRecord:
    """Write `run.json` where there is none; else compare it and return the one that is there.

    Raises:
        StoreError: a setting that the format does not have.
        IdentityError: the store belongs to another run; shows the differing fields side by side.
    """
    check_choice("profile", asked.encoding.profile, PROFILES)
    check_choice("precision_bits", asked.encoding.precision_bits, PRECISION_BITS)
    data = document_bytes(asked.to_document())
    if not (store / RUN_FILE).exists():
        with suppress(FileExistsError):  # another worker of this run, or the writer of another run: compared below
            create_exclusive(store / RUN_FILE, data)
    stored = read_run(store)
    compare_runs(store, stored, asked)
    return stored


def compare_runs(store: Place, stored: RunRecord, asked: RunRecord) -> None:
    """Refuse to go on with a run that is not the stored one.

    Raises:
        IdentityError: shows the differing fields side by side.
    """
    differing = differences(stored, asked)
    if differing:
        raise IdentityError(side_by_side(store, differing))


def differences(stored: RunRecord, asked: RunRecord) -> list[tuple[str, str, str]]:
    """Return (dotted name, stored, asked for) of every compared field that differs, values as canonical JSON."""
    left, right = map(_comparable, (stored, asked))
    names = sorted(left.keys() | right.keys())
    rows = ((name, left.get(name, _ABSENT), right.get(name, _ABSENT)) for name in names)
    return [row for row in rows if row[1] != row[2]]


def _comparable(record: RunRecord) -> dict[str, str]:
    """What is compared, as it reads when it was written and read back: JSON has no tuples, and keys are text."""
    plain = json.loads(document_bytes(record.compared()))
    del plain["checksum"]
    return dict(_fields(plain))


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, canonical JSON) of every leaf; JSON text, so that NaN equals NaN."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value, sort_keys=True)


def side_by_side(store: Place, differing: list[tuple[str, str, str]], advice: str = _ADVICE) -> str:
    """Return the message of an IdentityError: what differs, and what to do."""
    rows = [("field", "in the store", "asked for"), *differing]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    table = "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)
    return f"{store} belongs to another run; these fields differ:\n{table}\n{advice}"
