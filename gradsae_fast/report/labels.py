"""What users call their latents: a csv with the columns latent and label, or a Neuronpedia export (JSON lines).

A line of such an export has `index` (the latent) and `description`. Several labels of one latent are kept, in the order
of the file.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradsae_fast.errors import ConfigError

COLUMNS = ("latent", "label")
FIELDS = ("index", "description")
_MOST_BYTES = 1 << 28  # unpacked; a million latents with labels of 250 letters


def read_labels(path: Path, num_latents: int) -> dict[int, str]:
    """Return the label of each latent that has one.

    Args:
        path: `.csv`, or `.jsonl` or `.json` with one object a line; `.gz` behind it for compressed ones.
        num_latents: C; a latent outside it is an error.

    Raises:
        ConfigError: the file is missing, is neither, or a line cannot be read; the message names the line.
    """
    names: dict[int, list[str]] = {}
    for line, latent, label in _rows(path):
        number = _latent(path, line, latent, num_latents)
        if not isinstance(label, str):
            raise ConfigError(f"{path}, line {line}: the label is {label!r:.80}; expected text.")
        if label.strip() and label not in names.setdefault(number, []):
            names[number].append(label)
    return {latent: " / ".join(found) for latent, found in names.items() if found}


def _rows(path: Path) -> Iterator[tuple[int, Any, Any]]:
    name = path.name.removesuffix(".gz")
    text = _read(path)
    if name.endswith(".csv"):
        return _csv_rows(path, text)
    if name.endswith((".jsonl", ".json")):
        return _json_rows(path, text)
    raise ConfigError(f"labels {path}: expected a .csv with the columns latent,label or a Neuronpedia .jsonl export.")


def _read(path: Path) -> str:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"labels {path} have more than {_MOST_BYTES >> 20} MiB; expected some lines a latent.")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"labels {path} cannot be read ({error}); expected a text file in UTF-8.") from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Any, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ConfigError(f"labels {path} have the columns {reader.fieldnames!r:.200}; expected latent and label.")
        for row in reader:
            yield reader.line_num, row["latent"], row["label"]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: no csv ({error}).") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any, Any]]:
    for line, entry in enumerate(text.split("\n"), 1):
        if not entry.strip():
            continue
        try:
            record = json.loads(entry)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {line}: no JSON ({error}); expected one object a line.") from error
        if not isinstance(record, dict) or not set(FIELDS) <= set(record):
            raise ConfigError(f"{path}, line {line}: expected an object with index and description, as Neuronpedia's.")
        yield line, record["index"], record["description"]


def _latent(path: Path, line: int, latent: Any, num_latents: int) -> int:
    try:
        number = int(latent) if isinstance(latent, str | int) and not isinstance(latent, bool) else -1
    except ValueError:
        number = -1
    if not 0 <= number < num_latents:
        raise ConfigError(f"{path}, line {line}: latent {latent!r:.80}; expected 0 to {num_latents - 1}.")
    return number
