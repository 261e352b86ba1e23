"""Datasets of the Hugging Face hub by name, through the extra `datasets`."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradsae_fast.errors import CorpusError

PREFIX = "hf://"
_ROWS = 256  # row-by-row iteration of `datasets` costs three times as much


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRows:
    """The rows of a loaded dataset as mappings; can be iterated again."""

    dataset: Any

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for columns in self.dataset.iter(batch_size=_ROWS):
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))


def load_rows(name: str, *, subset: str | None, split: str, streaming: bool) -> DatasetRows:
    """The rows of one split of the dataset `name` (without the prefix). CorpusError where it cannot be had.

    `streaming` fetches rows as they are read instead of the whole split: for the first rows of a large dataset.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise CorpusError(
            f"got the corpus {name!r}: there is no such file or folder, and reading it as a dataset of the hub needs "
            "the package `datasets`; check the path, or install the extra: pip install 'gradsae-fast[datasets]'"
        ) from error
    try:
        dataset = datasets.load_dataset(name, subset, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"the dataset {name!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}; "
            "check its name, subset and split, and the connection; where a file is meant, its path"
        ) from error
    return DatasetRows(dataset=dataset)
