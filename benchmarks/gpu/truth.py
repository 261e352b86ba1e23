"""Checks of an answer against the truth on a few tokens; a set may differ only where rounding decides.

A check has a slack: fp32 sums of D terms of about unit size may be wrong by a small multiple of D * 2**-24; what a
rival rounds to bf16 is wrong by 2**-8 of its size. Inside the slack of the edge either answer is right.

Letters: N tokens, D model width, C latents, S sampled tokens, M documents.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.variant import WrongAnswer
from benchmarks.gpu.workload import Workload
from gradsae_kernels import SparseRows
from gradsae_kernels.sparse_rows import row_of_entry

Check = Callable[[Any], None]


def slack(workload: Workload, *, rounded: bool = False) -> float:
    """Largest error that fp32 sums, or a result rounded to bf16, may show; all quantities are of unit variance."""
    if rounded and workload.shape.dtype == torch.bfloat16:
        return 2.0**-8 * float(workload.truth_SC.abs().max()) * 2
    return (workload.shape.width + 256) * 2.0**-22


def sampled(rows: SparseRows, workload: Workload) -> Tensor:
    """float64 [S, C]: the active latents of the sampled tokens, NaN where there is none."""
    dense_SC = torch.full_like(workload.truth_SC, torch.nan)
    for place, token in enumerate(workload.sample_S.tolist()):
        part = slice(int(rows.indptr[token]), int(rows.indptr[token + 1]))
        dense_SC[place, rows.indices[part].long()] = rows.values[part].double()
    return dense_SC


def check_threshold(workload: Workload, *, rounded: bool = False) -> Check:
    """Everything clearly above its threshold is there with its value, and nothing clearly below."""
    allowed = slack(workload, rounded=rounded)

    def check(rows: SparseRows) -> None:
        _check_shape(rows, workload)
        found_SC, margin_SC = sampled(rows, workload), workload.truth_SC - workload.threshold_C
        _check_set(found_SC, margin_SC, workload.truth_SC, allowed)

    return check


def check_topk(workload: Workload, *, rounded: bool = False) -> Check:
    """k latents for each token, everything clearly above the k-th among them."""
    allowed = slack(workload, rounded=rounded)
    kth_S1 = workload.truth_SC.topk(workload.shape.active, dim=1).values[:, -1:]

    def check(rows: SparseRows) -> None:
        _check_shape(rows, workload)
        if not bool((rows.indptr.diff() == workload.shape.active).all()):
            raise WrongAnswer(f"some tokens have not exactly {workload.shape.active} latents")
        _check_set(sampled(rows, workload), workload.truth_SC - kth_S1, workload.truth_SC, 2 * allowed)

    return check


def check_dense(
    workload: Workload, *, rounded: bool = False, threshold: bool = False, allowed: float | None = None
) -> Check:
    """A dense [N, C]: of pre-activations without bias, or of what is left of them above the threshold."""
    allowed = slack(workload, rounded=rounded) if allowed is None else allowed

    def check(dense_NC: Tensor) -> None:
        found_SC = dense_NC[workload.sample_S].double()
        if threshold:
            found_SC = torch.where(found_SC == 0, torch.nan, found_SC)
            _check_set(found_SC, workload.truth_SC - workload.threshold_C, workload.truth_SC, allowed)
        else:
            _check_close(found_SC, workload.truth_SC - workload.bias_C, allowed)

    return check


def check_projections(workload: Workload, *, rounded: bool = False) -> Check:
    """[nnz]: the inner products of the sampled tokens' pairs."""
    allowed = slack(workload, rounded=rounded)
    wanted = [
        workload.w_dec_CD[workload.rows.indices[part].long()].double() @ workload.grad_ND[token].double()
        for token, part in _parts(workload)
    ]

    def check(projections: Tensor) -> None:
        for (_, part), expected in zip(_parts(workload), wanted, strict=True):
            _check_close(projections[part].double(), expected, allowed)

    return check


def check_reconstruction(workload: Workload, *, rounded: bool = False) -> Check:
    """[N, D]: the sum of value * decoder row; of a hundred terms, hence the wider slack."""
    allowed = slack(workload, rounded=rounded) * max(8.0, float(workload.rows.values.max()))
    wanted = [
        workload.rows.values[part].double() @ workload.w_dec_CD[workload.rows.indices[part].long()].double()
        for _, part in _parts(workload)
    ]

    def check(decoded_ND: Tensor) -> None:
        for (token, _), expected in zip(_parts(workload), wanted, strict=True):
            _check_close(decoded_ND[token].double(), expected, allowed)

    return check


def check_documents(workload: Workload) -> Check:
    """SparseRows [M]: the sums of value * projection over a document, by latent; the first document is checked."""
    stop_token = int(workload.document_ptr[1])
    stop = int(workload.rows.indptr[stop_token])
    row, latent = row_of_entry(workload.rows)[:stop], workload.rows.indices[:stop].long()
    influence = (
        torch.cat(
            [
                (workload.grad_ND[part_row].double() * workload.w_dec_CD[part].double()).sum(dim=1)
                for part_row, part in zip(row.split(4096), latent.split(4096), strict=True)
            ]
        )
        * workload.rows.values[:stop].double()
    )
    wanted_C = torch.zeros(workload.shape.latents, dtype=torch.float64, device=latent.device)
    wanted_C.index_add_(0, latent, influence)

    def check(sums: SparseRows) -> None:
        found_C = torch.zeros_like(wanted_C)
        part = slice(0, int(sums.indptr[1]))
        found_C[sums.indices[part].long()] = sums.values[part].double()
        terms = float(torch.bincount(latent).max()) * float(workload.rows.values.max())
        _check_close(found_C, wanted_C, slack(workload) * max(1.0, terms))

    return check


def _parts(workload: Workload) -> list[tuple[int, slice]]:
    indptr = workload.rows.indptr
    return [(token, slice(int(indptr[token]), int(indptr[token + 1]))) for token in workload.sample_S.tolist()]


def _check_shape(rows: SparseRows, workload: Workload) -> None:
    if len(rows.indptr) != workload.shape.tokens + 1 or int(rows.indptr[-1]) != len(rows.indices):
        raise WrongAnswer(f"{len(rows.indptr) - 1} rows; expected {workload.shape.tokens}")


def _check_set(found_SC: Tensor, margin_SC: Tensor, truth_SC: Tensor, allowed: float) -> None:
    """`found` is NaN where nothing was found; a member is one whose margin is positive."""
    there_SC = ~found_SC.isnan()
    lost, extra = int(((margin_SC > allowed) & ~there_SC).sum()), int(((margin_SC < -allowed) & there_SC).sum())
    if lost or extra:
        raise WrongAnswer(f"{lost} active latents are lost and {extra} are extra on {len(found_SC)} sampled tokens")
    _check_close(found_SC[there_SC], truth_SC[there_SC], allowed)


def _check_close(found: Tensor, expected: Tensor, allowed: float) -> None:
    if found.shape != expected.shape:
        raise WrongAnswer(f"got shape {tuple(found.shape)}; expected {tuple(expected.shape)}")
    worst = float((found - expected).abs().nan_to_num(nan=torch.inf).max()) if found.numel() else 0.0
    if worst > allowed:
        raise WrongAnswer(f"off by {worst:.3g}; {allowed:.3g} is allowed")
