"""What a dry run predicts, against what the run then does."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast import open_scores
from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import ScoreError
from gradsae_fast.estimate import estimate
from gradsae_fast.extract import extract
from gradsae_fast.model.capture import _Run

Configure = Callable[..., ExtractConfig]


@pytest.mark.parametrize("documents", [None, 400])
def test_tokens_are_exact_bytes_are_close_and_nothing_is_left_behind(
    documents: int | None, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "" if n == 0 else f"The people of state {n} build roads."} for n in range(documents or 0)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    config = configure(corpus={"path": str(tmp_path / "many.jsonl")} if documents else {})
    found = estimate(config)
    assert list(scratch.iterdir()) == []
    assert not Path(config.store.path).exists()
    report = extract(config)
    store = open_scores(config.store.path)
    assert (found.num_tokens, found.num_documents, found.num_segments) == (
        store.num_tokens,
        store.num_documents,
        len(store.segments),
    )
    assert report.bytes_written / 1.5 < found.store_bytes < report.bytes_written * 1.5
    assert 0 < found.probe_tokens <= found.num_tokens
    assert found.seconds == pytest.approx(found.num_tokens / found.tokens_per_second)
    assert found.peak_memory_bytes > 1e7
    assert found.free_bytes is not None
    assert found.free_bytes > 0


def test_a_probe_of_nothing_but_nan_is_an_error(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(score={"nonfinite": "quarantine", "sink_norm_ratio": 0})
    monkeypatch.setattr("gradsae_fast.estimate.measure_medians", lambda _prepared: {})
    backward = _Run._backward

    def not_finite(run: _Run, *args: Any) -> Any:
        grads, values = backward(run, *args)
        return {
            site: {name: g * float("nan") for name, g in of_site.items()} for site, of_site in grads.items()
        }, values

    monkeypatch.setattr(_Run, "_backward", not_finite)
    with pytest.raises(ScoreError, match="were left out for NaN or Inf"):
        estimate(config)
