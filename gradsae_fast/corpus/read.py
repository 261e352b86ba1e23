"""Open a corpus: files, folders, hub datasets and Python iterables, all as one re-iterable stream of Documents."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gradsae_fast.corpus.columns import Columns, document_from_row
from gradsae_fast.corpus.digest import canonical_json
from gradsae_fast.corpus.files import CorpusFile, find_files, format_of
from gradsae_fast.corpus.formats import dataset
from gradsae_fast.corpus.row import Row
from gradsae_fast.errors import ConfigError, CorpusError
from gradsae_fast.records import Document

DEFAULT_SPLIT = "train"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows that are no files: a Python iterable or a hub dataset."""

    name: str
    items: Iterable[Any]

    def rows(self) -> Iterator[Row]:
        """The items in their order."""
        for index, item in enumerate(self.items):
            yield Row(index=index, place=f"{self.name}, row {index} (counted from 0)", value=item)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Documents in a fixed order, read anew on every iteration and never held as a whole."""

    sources: tuple[CorpusFile | Rows, ...]
    columns: Columns
    max_documents: int | None = None

    def __iter__(self) -> Iterator[Document]:
        """The documents. CorpusError at the first row that cannot be used, or at the end where there was none."""
        unseen = set(self.columns.metadata or ())
        count = 0
        for source, row in islice(self._rows(), self.max_documents):
            if unseen and isinstance(row.value, Mapping):
                unseen.difference_update(row.value)
            yield document_from_row(row, self.columns, source)
            count += 1
        if count == 0:
            raise CorpusError(f"{self.sources[0].name}: got an empty corpus, expected at least one document")
        if unseen:
            raise CorpusError(
                f"got the metadata columns {sorted(unseen)}, which none of the {count} rows has; check their names"
            )

    def manifest(self) -> dict[str, Any]:
        """What identifies the documents, as JSON: files with size and sha256 (rows: their digest), columns, limit."""
        files = [source.manifest() for source in self.sources if isinstance(source, CorpusFile)]
        content = {"files": files} if files else {"rows": _digest_documents(self)}
        columns = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.columns).items()
            if name != "patch" or value is not None  # older plans know no such column
        }
        return {**content, "columns": columns, "max_documents": self.max_documents}

    def _rows(self) -> Iterator[tuple[str, Row]]:
        for source in self.sources:
            for row in source.rows():
                yield source.name, row


def open_corpus(
    source: str | Path | Iterable[str | Mapping[str, Any] | Document],
    *,
    text_column: str = "text",
    id_column: str | None = None,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    contrast_columns: tuple[str, str] | None = None,
    patch_column: str | None = None,
    metadata_columns: Iterable[str] | None = None,
    subset: str | None = None,
    split: str = DEFAULT_SPLIT,
    max_documents: int | None = None,
) -> Corpus:
    """Open a corpus; nothing is read from files before it is iterated.

    source: a jsonl, parquet or text file, a folder of one of these kinds, "hf://name" or the name of a hub dataset,
    or an iterable of str, mappings or Documents (an iterator is drawn into a list). Keys come from `id_column`, else
    from a column "id", else they are "source:row". `metadata_columns` None keeps all columns without another use.
    `subset` and `split` are for hub datasets.
    Raises ConfigError for settings that contradict each other or have no effect, CorpusError for a missing source.

    >>> [document.key for document in open_corpus(["one", {"text": "two", "id": 7}])]
    ['rows:0', '7']
    """
    if max_documents is not None and max_documents < 1:
        raise ConfigError(f"got max_documents = {max_documents}, expected at least 1, or None for all")
    if isinstance(metadata_columns, str):
        raise ConfigError(
            f"got metadata_columns {metadata_columns!r}, expected a list of names: [{metadata_columns!r}]"
        )
    columns = Columns(
        text=text_column,
        id=id_column,
        prompt=prompt_column,
        answer=answer_column,
        contrast=contrast_columns,
        patch=patch_column,
        metadata=None if metadata_columns is None else tuple(metadata_columns),
    )
    hub_name = _hub_name(source)
    sources: tuple[CorpusFile | Rows, ...]
    if hub_name is not None:
        # Whoever wants the first documents of a large dataset does not want to fetch all of it.
        rows = dataset.load_rows(hub_name, subset=subset, split=split, streaming=max_documents is not None)
        sources = (Rows(name=dataset.PREFIX + hub_name, items=rows),)
    elif subset is not None or split != DEFAULT_SPLIT:
        raise ConfigError(
            f"got subset {subset!r} and split {split!r}, which only datasets of the hub have; leave them out"
        )
    elif isinstance(source, (str, Path)):
        sources = find_files(Path(source))
    else:
        sources = (_rows_of(source),)
    return Corpus(sources=sources, columns=columns, max_documents=max_documents)


def _hub_name(source: object) -> str | None:
    """The dataset's name where `source` means one: a path that exists, or looks like a file, never does."""
    if not isinstance(source, str):
        return None
    if source.startswith(dataset.PREFIX):
        return source.removeprefix(dataset.PREFIX)
    if _HUB_NAME.fullmatch(source) is None or format_of(Path(source)) is not None or Path(source).exists():
        return None
    return source


def _rows_of(source: Iterable[Any]) -> Rows:
    if isinstance(source, Mapping) or hasattr(source, "columns"):
        # Iterating over a mapping or a data frame gives names of columns, which would pass as texts.
        raise CorpusError(
            f"got a {type(source).__name__}, expected an iterable of rows; for a data frame pass "
            'frame.to_dict("records"), for one document a list with one mapping'
        )
    if not isinstance(source, Iterable):
        raise CorpusError(f"got a {type(source).__name__}, expected a path, a dataset's name or an iterable of rows")
    return Rows(name="rows", items=list(source) if iter(source) is source else source)


def _digest_documents(documents: Iterable[Document]) -> dict[str, Any]:
    sha256 = hashlib.sha256()
    count = 0
    for document in documents:
        fields = asdict(document)
        if document.patch is None:
            del fields["patch"]  # older plans know no such field
        sha256.update(canonical_json(fields) + b"\n")
        count += 1
    return {"count": count, "sha256": sha256.hexdigest()}
