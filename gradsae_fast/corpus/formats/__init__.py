"""One file per kind of corpus. A file format has `SUFFIXES` and `read_rows(path, name) -> Iterator[Row]`.

A new format is a new module with these two names and a line in `gradsae_fast.corpus.files.FORMATS`.
"""
