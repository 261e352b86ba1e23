"""Text files: a file is one document, its name the document's id. Line ends are kept as they are."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from gradsae_fast.corpus.formats.compressed import open_bytes
from gradsae_fast.corpus.row import Row
from gradsae_fast.errors import CorpusError

SUFFIXES = (".txt", ".md")


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """The one row of a file: columns `id` (the file's name) and `text`. CorpusError where it is not UTF-8."""
    with open_bytes(path, name) as file:
        content = file.read()
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    try:
        text = content[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start + mark
        line = content.count(b"\n", 0, start) + 1
        raise CorpusError(
            f"{name}, line {line}: got the byte 0x{content[start]:02x} at byte {start} of the file, expected UTF-8; "
            "convert the file to UTF-8"
        ) from error
    yield Row(index=0, place=name, value={"id": name, "text": text})
