"""A run on a Ray cluster of this machine, by the command that a user types; a cluster's start costs half a minute.

What happens when machines, workers and drivers die, or workers fail, is tried by `benchmarks.many_machines`.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsae_fast import open_scores, verify
from gradsae_fast.config import ExtractConfig
from gradsae_fast.extract import extract

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
Configure = Callable[..., ExtractConfig]


def command(config: ExtractConfig, *options: str) -> list[str]:
    """`gradsae extract` with what the configuration of the tiny run says."""
    given = {
        "model": config.model.path,
        "sae": config.saes[0].path,
        "corpus": config.corpus.path,
        "out": config.store.path,
        "context-length": config.corpus.context_length,
        "overlap": config.corpus.overlap,
        "tokens-per-batch": config.run.tokens_per_batch,
        "threads": 1,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    program = [sys.executable, "-c", "from gradsae_fast.cli import main; main()"]
    return [*program, "extract", *words, "--force", *options]


def test_two_actors_leave_the_bytes_of_one_process(configure: Configure, tmp_path: Path) -> None:
    alone, together = configure("alone"), configure("together")
    extract(alone)
    ran = subprocess.run(
        command(together, "--engine", "ray", "--workers", "2"), capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    store, single = open_scores(together.store.path), open_scores(alone.store.path)
    assert [segment.digest for segment in store.segments] == [segment.digest for segment in single.segments]
    assert len({segment.commit["writer"]["process"] for segment in store.segments}) == 2
    assert store.index is not None
    assert verify(store.path) == []
    assert "ray: 2 workers of 1 CPU" in ran.stderr
    assert f"{len(store.segments)} segments written, 0 were there" in ran.stdout
    assert "Traceback" not in ran.stderr
    assert "raylet" not in ran.stderr
