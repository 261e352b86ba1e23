"""The files of a corpus: which there are, in which order, how each is read, and what identifies its content."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from gradsae_fast.corpus.formats import compressed, jsonl, parquet, text
from gradsae_fast.corpus.row import Row
from gradsae_fast.errors import CorpusError

Reader = Callable[[Path, str], Iterator[Row]]

FORMATS = {"jsonl": jsonl, "parquet": parquet, "text": text}
_ADDRESS = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/")  # a Path keeps one of the slashes
READABLE = "jsonl or ndjson (plain, .gz, .zst), parquet, txt, md (plain, .gz, .zst), or a folder of one of these kinds"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFile:
    """A file with its name inside the corpus: relative to the folder that was given, so that folders can move."""

    path: Path
    name: str
    format: str  # key of FORMATS

    def rows(self) -> Iterator[Row]:
        """The rows of the file. CorpusError where it has none: an empty file is most often a failed copy."""
        reader: Reader = FORMATS[self.format].read_rows
        empty = True
        for row in reader(self.path, self.name):
            empty = False
            yield row
        if empty:
            raise CorpusError(f"{self.name}: got a file without rows, expected at least one; remove or restore it")

    def manifest(self) -> dict[str, object]:
        """Name, size in bytes and sha256 of the content as it lies on disk."""
        try:
            with self.path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                return {"name": self.name, "size": file.tell(), "sha256": sha256}
        except OSError as error:
            raise CorpusError(f"{self.name}: the file cannot be read: {error}") from error


def find_files(path: Path) -> tuple[CorpusFile, ...]:
    """The corpus files at `path`, a file or a folder, sorted by name; hidden files and other kinds are passed over.

    CorpusError where there is none, or where a folder holds several formats: which one is meant is not guessed.
    """
    address = _ADDRESS.match(str(path))
    if address and not _exists(path):
        raise CorpusError(
            f"got the {address[1]}:// address as the corpus (not repeated here, as it may hold a password); expected a "
            "path, or hf://name: download it first"
        )
    if not _exists(path):
        raise CorpusError(f"got the corpus {str(path)[:200]!r}: no such file or folder; check the path")
    if not path.is_dir():
        return (_single_file(path),)
    found = [
        CorpusFile(path=item, name=item.relative_to(path).as_posix(), format=kind)
        for item in path.rglob("*")
        if (kind := format_of(item)) is not None and not _hidden(item.relative_to(path)) and item.is_file()
    ]
    kinds = sorted({file.format for file in found})
    if not found:
        raise CorpusError(f"got the folder {str(path)!r} without corpus files, expected {READABLE}")
    if len(kinds) > 1:
        first = {kind: next(file.name for file in found if file.format == kind) for kind in kinds}
        raise CorpusError(
            f"got the folder {str(path)!r} with files of several kinds ({first}), expected one kind; "
            "put the files of the corpus into a folder of their own"
        )
    return tuple(sorted(found, key=lambda file: file.name))


def format_of(path: PurePath) -> str | None:
    """The format that the suffix of a file tells, or None.

    >>> format_of(PurePath("shard-00.jsonl.zst"))
    'jsonl'
    """
    name = path.name.lower()
    plain = PurePath(name).with_suffix("") if name.endswith(compressed.SUFFIXES) else PurePath(name)
    kind = next((kind for kind, reader in FORMATS.items() if plain.suffix in reader.SUFFIXES), None)
    # Parquet compresses its own pages; nobody reads it through an outer compression.
    return None if kind == "parquet" and plain.name != name else kind


def _single_file(path: Path) -> CorpusFile:
    kind = format_of(path)
    if kind is None:
        raise CorpusError(f"got the corpus file {str(path)!r}, expected {READABLE}; convert or rename it")
    return CorpusFile(path=path, name=path.name, format=kind)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long: a text given in place of a path
        return False


def _hidden(relative: PurePath) -> bool:
    return any(part.startswith(".") for part in relative.parts)
