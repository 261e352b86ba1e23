"""The straight line on a tiny model: what a user would state of a finished store."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradsae_fast import open_scores, rank_latents
from gradsae_fast.config import ExtractConfig
from gradsae_fast.estimate import peak_memory
from gradsae_fast.extract import extract
from gradsae_fast.sae.formats import saelens

Configure = Callable[..., ExtractConfig]
WIDTH = 24  # of the tiny model


def test_every_token_of_the_corpus_is_scored_once(configure: Configure) -> None:
    config = configure()
    report = extract(config)
    store = open_scores(config.store.path)
    assert store.is_complete
    assert report.num_tokens == store.num_tokens
    for segment in store.segments:
        tokens, documents = segment.tokens(), segment.documents()
        for slot, length in enumerate(documents.num_tokens):
            assert tokens.position[tokens.document == slot].tolist() == list(range(length))
    assert rank_latents(store, where="party=R").num_rows == 20
    assert np.isfinite(list(report.fvu.values())).all()


def test_peak_memory_does_not_grow_with_tokens_times_latents(
    forkserver: Any, configure: Configure, tmp_path: Path
) -> None:
    num_latents = 65_536
    generator = torch.Generator().manual_seed(0)
    directions_CD = torch.nn.functional.normalize(torch.randn(num_latents, WIDTH, generator=generator))
    weights = {
        "W_enc": directions_CD.T.contiguous(),
        "W_dec": directions_CD,
        "b_enc": torch.zeros(num_latents),
        "b_dec": torch.zeros(WIDTH),
    }
    metadata = {"hf_hook_name": "model.layers.1", "prepend_bos": True}
    sae = saelens.save(tmp_path / "wide", architecture="topk", weights=weights, config={"k": 8, "metadata": metadata})
    sentence = "We must build roads and schools, for the children of this land. "
    peaks = []
    for num_documents in (4, 160):
        corpus = tmp_path / f"{num_documents}.jsonl"
        corpus.write_text((json.dumps({"text": sentence * 3}) + "\n") * num_documents)
        config = configure(
            f"wide-{num_documents}",
            sae={"path": str(sae)},
            corpus={"path": str(corpus)},
            run={"tokens_per_batch": 8192},
        )
        with ProcessPoolExecutor(1, mp_context=forkserver) as pool:
            num_tokens = pool.submit(extract, config).result().num_tokens
            peaks.append(pool.submit(peak_memory).result())
    dense = num_tokens * num_latents * 4
    assert num_tokens > 8000
    assert peaks[1] - peaks[0] < dense / 10
