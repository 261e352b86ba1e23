"""Numba is wished for, never required."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.caching import FunctionCache

from gradsae_kernels.compiled import compiled, numba_is_usable


def test_a_missing_numba_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    numba_is_usable.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not numba_is_usable()
        assert not numba_is_usable()
    numba_is_usable.cache_clear()
    assert [record.getMessage().count("slower") for record in caplog.records] == [1]


def test_a_read_only_installation_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FunctionCache, "_impl_class", _no_cache)
    assert compiled()(_twice)(21) == 42


def test_importing_the_package_does_not_import_numba() -> None:
    code = "import sys, gradsae_kernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent).returncode == 0


def _twice(number: int) -> int:
    return 2 * number


def _no_cache(cache: object, function: object) -> None:
    raise RuntimeError("cannot cache function: no locator available")
