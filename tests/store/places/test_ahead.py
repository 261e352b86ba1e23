"""Hints about what will be read change nothing that is read."""

import os
from pathlib import Path

import pytest

from gradsae_fast.store.places import ahead


@pytest.mark.parametrize("has_hints", [True, False])
def test_heads_are_read_in_their_order_whether_the_system_takes_hints_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_hints: bool
) -> None:
    monkeypatch.setattr(ahead, "_BATCH", 3)
    if not has_hints:
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    paths = [tmp_path / f"{number}" for number in range(8)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * number * 1000)
    expected = [(number * 1000, path.read_bytes()[:16]) for number, path in enumerate(paths)]
    assert list(ahead.read_heads(paths, 16)) == expected
    with pytest.raises(FileNotFoundError):
        list(ahead.read_heads([*paths, tmp_path / "absent"], 16))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no hints")
def test_the_end_of_every_file_is_asked_for_and_an_absent_one_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *hint: asked.append(hint))
    monkeypatch.setattr(ahead, "_END_BYTES", 100)
    for name, size in {"small": 40, "large": 140}.items():
        (tmp_path / name).write_bytes(bytes(size))
    before = _open_files()
    ahead.expect([tmp_path / "small", tmp_path / "absent", tmp_path / "large"])
    assert asked == [(0, 0, os.POSIX_FADV_WILLNEED), (40, 0, os.POSIX_FADV_WILLNEED)]
    assert _open_files() == before


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0
