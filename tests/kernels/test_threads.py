"""Rows over threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gradsae_kernels import encode_topk
from gradsae_kernels.threads import run_shards, shard_rows


@pytest.mark.parametrize("num_rows", [0, 1, 15, 16, 17, 1000])
def test_shards_cover_every_row_once(num_rows: int) -> None:
    rows = [row for start, stop in shard_rows(num_rows) for row in range(start, stop)]
    assert rows == list(range(num_rows))


def test_an_error_in_any_shard_reaches_the_caller() -> None:
    def loop(start: int, stop: int) -> None:
        if start == 48:
            raise ArithmeticError("row 48")

    with pytest.raises(ArithmeticError, match="row 48"):
        run_shards(loop, shard_rows(64), *())


def test_callers_in_several_threads_do_not_disturb_each_other() -> None:
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(6, 90, 16, generator=generator)
    w_CD, bias_C = torch.randn(400, 16, generator=generator), torch.zeros(400)
    alone = [encode_topk(x_ND, w_CD, bias_C, 5).indices for x_ND in xs]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda x_ND: encode_topk(x_ND, w_CD, bias_C, 5).indices, xs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
