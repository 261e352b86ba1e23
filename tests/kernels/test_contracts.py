"""Every refusal names the argument and says what to do."""

import pytest
import torch
from torch import Tensor

from gradsae_kernels import ContractError, SparseRows, decode, encode_threshold, encode_topk, project

X = torch.ones(4, 3)
W = torch.ones(5, 3)
B = torch.zeros(5)


@pytest.mark.parametrize(
    ("x", "w", "bias", "threshold", "message"),
    [
        (torch.ones(3), W, B, B, r"x_ND: .*\[N, D\]"),
        (torch.ones(4, 3, dtype=torch.int64), W, B, B, "x_ND: .*float"),
        (X, W.double(), B, B, r"w_enc_CD: .*\.float\(\)"),
        (X, W[0], B, B, r"w_enc_CD: .*\[C, D\]"),
        (X, torch.ones(3, 5).T, B, B, r"w_enc_CD: .*\.contiguous\(\)"),
        (X, torch.ones(3, 5), B, B, "one row per latent, not one column"),
        (X, torch.ones(0, 3), B[:0], B[:0], "0 < C"),
        (X, W, torch.zeros(4), B, r"bias_C: .*\[5\]"),
        (X, W, torch.zeros(5, 1), B, "bias_C"),
        (X, W, B, torch.zeros(5, dtype=torch.int64), "threshold_C: .*float"),
        (X, W, torch.full((5,), torch.inf), B, "bias_C: entry 0"),
        (X, W, B, torch.tensor([0, 0, torch.nan, 0, 0]), "threshold_C: entry 2 is NaN"),
        (X, W.to("meta"), B, B, "w_enc_CD: got device meta; expected cpu"),
    ],
)
def test_encoders_refuse_what_they_cannot_take(
    x: Tensor, w: Tensor, bias: Tensor, threshold: Tensor, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        encode_threshold(x, w, bias, threshold)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_the_first_row_that_is_not_finite_is_named(bad: float) -> None:
    x = torch.ones(4, 3, dtype=torch.float64)
    x[2, 1] = x[3, 0] = bad
    rows = SparseRows(torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    for call in (lambda: encode_threshold(x, W, B, B), lambda: encode_topk(x, W, B, 2), lambda: project(rows, x, W)):
        with pytest.raises(ContractError, match=r"row 2 holds NaN or Inf.*2 of 4"):
            call()


def test_large_finite_numbers_whose_sum_overflows_are_taken() -> None:
    x = torch.full((4, 3), 3e38)
    assert encode_threshold(x, torch.full((5, 3), 1e-30), B, B).indptr.tolist() == [0, 5, 10, 15, 20]


def test_sparse_rows_that_disagree_are_refused() -> None:
    indptr = torch.tensor([0, 1, 3])
    indices, values = torch.tensor([4, 0, 2], dtype=torch.int32), torch.ones(3)
    grad = torch.ones(2, 3)
    assert len(project(SparseRows(indptr, indices, values), grad, W)) == 3
    for rows, message in (
        (SparseRows(indptr.int(), indices, values), r"rows\.indptr: .*int64"),
        (SparseRows(indptr, indices.long(), values), r"rows\.indices: .*int32"),
        (SparseRows(indptr, indices, values.double()), r"rows\.values: .*float32"),
        (SparseRows(indptr + 1, indices, values), "to start at 0"),
        (SparseRows(torch.tensor([0, 2, 1]), indices[:1], values[:1]), "never to fall"),
        (SparseRows(indptr, indices[:2], values[:2]), "end at nnz"),
        (SparseRows(indptr, indices, values[:2]), "3 indices and 2 values"),
        (SparseRows(indptr, indices + 1, values), "latents 1 to 5; expected 0 to 4"),
        (SparseRows(indptr, indices - 1, values), "latents -1 to 3"),
    ):
        with pytest.raises(ContractError, match=message):
            project(rows, grad, W)
        with pytest.raises(ContractError, match=message):
            decode(rows, W)
