"""What the operators accept, checked once at the door.

Letters: N tokens, D model width, C latents, K = nnz active pairs. Costs: one pass over x or grad, one over the sparse
pairs, none over the weights; a NaN in the weights shows as a pre-activation that is not finite, and is reported there.
"""

import torch
from torch import Tensor

from gradsae_kernels.sparse_rows import SparseRows

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ContractError(ValueError):
    """An argument that an operator cannot take; the message says got, expected, and what to do."""


def check_rows(name: str, rows_ND: Tensor) -> None:
    """A float [N, D] whose fp32 values are all finite; names the first row that is not."""
    if rows_ND.ndim != 2 or not rows_ND.is_floating_point():
        raise ContractError(f"{name}: got {_seen(rows_ND)}; expected a float tensor [N, D]; reshape or cast it")
    # A sum is finite only if every term is: one pass and no temporary. A sum that overflows is looked at again.
    if torch.isfinite(rows_ND.sum(dtype=torch.float32)):
        return
    finite_N = torch.isfinite(rows_ND.float()).all(dim=1)
    if not finite_N.all():
        first = int((~finite_N).to(torch.uint8).argmax())
        raise ContractError(
            f"{name}: row {first} holds NaN or Inf in fp32 ({int((~finite_N).sum())} of {len(finite_N)} rows do); "
            "expected finite numbers; leave those tokens out or find where they come from"
        )


def check_weights(name: str, weights_CD: Tensor, rows_ND: Tensor) -> None:
    """A contiguous fp32, bf16 or fp16 [C, D] of the width and on the device of the rows."""
    if weights_CD.ndim != 2 or weights_CD.dtype not in WEIGHT_DTYPES:
        raise ContractError(
            f"{name}: got {_seen(weights_CD)}; expected [C, D] in float32, bfloat16 or float16; cast with .float()"
        )
    if not weights_CD.is_contiguous():
        raise ContractError(
            f"{name}: got strides {weights_CD.stride()} for shape {tuple(weights_CD.shape)}; expected one contiguous "
            "row per latent; call .contiguous() once, after the transpose, and keep the result"
        )
    if weights_CD.shape[1] != rows_ND.shape[1] or 0 in weights_CD.shape or weights_CD.shape[0] >= 2**31:
        raise ContractError(
            f"{name}: got {_seen(weights_CD)} with rows of width {rows_ND.shape[1]}; expected [C, "
            f"{rows_ND.shape[1]}] with 0 < C < 2**31 and D > 0; one row per latent, not one column"
        )
    _check_device(name, weights_CD, rows_ND)


def check_vector(name: str, vector: Tensor, length: int, rows_ND: Tensor, *, allow_inf: bool = False) -> None:
    """A float vector of `length` finite entries (or only not NaN) on the device of the rows."""
    if vector.shape != (length,) or not vector.is_floating_point():
        raise ContractError(f"{name}: got {_seen(vector)}; expected a float tensor [{length}]; expand or cast it")
    _check_device(name, vector, rows_ND)
    good = ~torch.isnan(vector) if allow_inf else torch.isfinite(vector.float())
    if not good.all():
        raise ContractError(
            f"{name}: entry {int((~good).to(torch.uint8).argmax())} is {'NaN' if allow_inf else 'NaN or Inf'}; "
            "expected numbers; repair the SAE"
        )


def check_k(k: int, num_latents: int) -> None:
    """1 <= k <= C."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_latents:
        raise ContractError(f"k: got {k!r}; expected an integer from 1 to the {num_latents} latents")


def check_capacity(capacity: int) -> None:
    """At least 1."""
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise ContractError(f"capacity: got {capacity!r}; expected an integer of at least 1; leave it out for 256")


def check_sparse(rows: SparseRows, num_latents: int, like: Tensor) -> None:
    """Compressed rows whose parts agree with each other, with C, and with the device of `like`."""
    indptr, indices, values = rows
    for name, part, dtype in (
        ("indptr", indptr, torch.int64),
        ("indices", indices, torch.int32),
        ("values", values, torch.float32),
    ):
        if part.ndim != 1 or part.dtype != dtype or not part.is_contiguous():
            raise ContractError(f"rows.{name}: got {_seen(part)}; expected a contiguous vector of {dtype}; cast it")
        _check_device(f"rows.{name}", part, like)
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices) or bool((indptr.diff() < 0).any()):
        raise ContractError("rows.indptr: expected to start at 0, never to fall and to end at nnz; pass it unsliced")
    if len(indices) != len(values):
        raise ContractError(f"rows: got {len(indices)} indices and {len(values)} values; expected equally many")
    if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < num_latents):
        raise ContractError(
            f"rows.indices: got latents {int(indices.min())} to {int(indices.max())}; expected 0 to {num_latents - 1}; "
            "encode and decode with the same SAE"
        )


def check_row_count(name: str, rows: SparseRows, dense_ND: Tensor) -> None:
    """As many sparse rows as dense ones."""
    if len(rows.indptr) - 1 != len(dense_ND):
        raise ContractError(
            f"{name}: got {len(dense_ND)} rows and {len(rows.indptr) - 1} sparse rows; expected one of each per token"
        )


def check_document_ptr(document_ptr: Tensor, num_tokens: int, like: Tensor) -> None:
    """int64 [S+1] from 0 to N that never falls, on the device of `like`: document s is tokens ptr[s]:ptr[s+1]."""
    if document_ptr.ndim != 1 or document_ptr.dtype != torch.int64:
        raise ContractError(f"document_ptr: got {_seen(document_ptr)}; expected an int64 vector [S+1]; cast it")
    _check_device("document_ptr", document_ptr, like)
    if len(document_ptr) == 0 or document_ptr[0] != 0 or document_ptr[-1] != num_tokens:
        seen = f"{int(document_ptr[0])} to {int(document_ptr[-1])}" if len(document_ptr) else "nothing"
        raise ContractError(f"document_ptr: got {seen}; expected 0 to {num_tokens}; every token is in one document")
    if bool((document_ptr.diff() < 0).any()):
        raise ContractError("document_ptr: it falls; expected the first token of each document in rising order")


class NonfiniteRow(ContractError):
    """A pre-activation that is not a finite number although x was, and in which row."""

    row: int


def nonfinite_row(row: int) -> NonfiniteRow:
    """The error for this row."""
    error = NonfiniteRow(
        f"pre-activations of row {row} are NaN or Inf although x is finite; expected finite products; the encoder "
        "holds NaN or Inf, or the product overflows fp32: check the weights, or rescale x"
    )
    error.row = row
    return error


def _check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ContractError(f"{name}: got device {tensor.device}; expected {like.device} like the others; move it")


def _seen(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
