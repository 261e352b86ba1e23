"""JSON lines: one object a line, UTF-8, plain or compressed. Blank lines are no rows; a row's index is its line."""

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradsae_fast.corpus.formats.compressed import open_bytes
from gradsae_fast.corpus.row import Row
from gradsae_fast.errors import CorpusError

SUFFIXES = (".jsonl", ".ndjson")


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a file, one line in memory at a time. CorpusError with line, got and expected."""
    offset = 0
    with open_bytes(path, name) as lines:
        for index, line in enumerate(lines):
            if not line.isspace():
                place = f"{name}, line {index + 1}"
                yield Row(index=index, place=place, value=_parse(line, offset, place))
            offset += len(line)


def _parse(line: bytes, offset: int, place: str) -> Mapping[str, Any]:
    """The object on a line that starts at byte `offset` of the decompressed file."""
    mark = len(codecs.BOM_UTF8) if offset == 0 and line.startswith(codecs.BOM_UTF8) else 0
    try:
        text = line[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start + mark
        raise CorpusError(
            f"{place}: got the byte 0x{line[start]:02x} at byte {offset + start} of the file (byte {start} of the "
            "line), expected UTF-8; convert the file to UTF-8"
        ) from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{place}: got malformed JSON ({error}) in {text[:60]!r}, expected one JSON object a line; "
            "repair the line, or copy the file again if it was cut off"
        ) from error
    if not isinstance(value, dict):
        raise CorpusError(f'{place}: got a JSON {_json_type(value)}, expected an object; write {{"text": …}} instead')
    return value


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names[type(value)]
