from pathlib import Path

import pytest

from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.errors import CorpusError


def test_a_text_file_is_one_document_and_keeps_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_bytes("\ufeffline\r\nzwei \0 é".encode())
    (document,) = open_corpus(tmp_path / "note.txt")
    assert (document.key, document.text, document.metadata) == ("note.txt", "line\r\nzwei \0 é", {})


def test_a_text_file_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(CorpusError, match=r"x\.txt, line 2: got the byte 0xe9 at byte 8"):
        list(open_corpus(tmp_path / "x.txt"))
