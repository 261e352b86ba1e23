import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.errors import CorpusError


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_compressed_file_is_an_error_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    content = jsonl([{"text": f"some text {i}"} for i in range(50)])
    whole = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    path = tmp_path / f"x.jsonl{suffix}"
    for length in range(2, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorpusError, match=r"truncated file .*copy or download it again"):
            list(open_corpus(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".parquet"])
def test_damaged_and_empty_files_are_errors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}" if suffix == ".parquet" else tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(b"this is no such thing at all")
    with pytest.raises(CorpusError, match=r"copy or download it again"):
        list(open_corpus(path))
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"x.* got a file"):
        list(open_corpus(path))


def test_damaged_bytes_inside_a_compressed_file_are_an_error(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(jsonl([{"text": f"some text {i}"} for i in range(50)])))
    content[-6] ^= 1  # the checksum
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    with pytest.raises(CorpusError, match=r"damaged \.gz data"):
        list(open_corpus(tmp_path / "x.jsonl.gz"))
