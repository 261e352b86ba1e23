"""Parquet files, read by pyarrow a small batch of a row group at a time."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gradsae_fast.corpus.row import Row
from gradsae_fast.errors import CorpusError

SUFFIXES = (".parquet",)
_ROWS = 128  # rows turned into Python objects at a time: a row may hold megabytes


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a file, all columns, in file order. CorpusError where the file is damaged or holds invalid UTF-8."""
    index = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for value in batch.to_pylist():
                    yield Row(index=index, place=f"{name}, row {index} (counted from 0)", value=value)
                    index += 1
    except FileNotFoundError as error:
        raise CorpusError(f"{name}: no such file: {path}; check the path") from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{name}, rows {index} to {index + _ROWS - 1}: got a string that is not UTF-8 ({error}), expected UTF-8; "
            "write the file again"
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorpusError(
            f"{name}: got a file that pyarrow cannot read ({error}), expected Parquet; copy or download it again"
        ) from error
