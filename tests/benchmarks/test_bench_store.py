"""Bytes of the store on scores with the statistics of real ones, against the goals."""

from pathlib import Path

import pytest

from benchmarks.bench_store import SITE, zipf_segment
from gradsae_fast.store import ScoreWriter


@pytest.mark.parametrize(("precision_bits", "goal"), [(7, 3.9), (10, 4.7), (23, 8.0)])
def test_a_non_zero_takes_few_bytes(precision_bits: int, goal: float, tmp_path: Path) -> None:
    segment = zipf_segment(2000)
    with ScoreWriter.create_or_resume(
        tmp_path / "scores", run={}, identity={}, num_segments=1, precision_bits=precision_bits
    ) as writer:
        writer.write(segment)
    by_token = next((tmp_path / "scores" / "segments").glob("*/sites/*/by_token"))
    num_bytes = sum(path.stat().st_size for path in by_token.rglob("*") if path.is_file())
    assert num_bytes / len(segment.sites[SITE].indices) <= goal
