"""The value that flows between the operators; letters: N tokens, nnz active pairs."""

from typing import NamedTuple

import torch
from torch import Tensor


class SparseRows(NamedTuple):
    """Active latents of N tokens, as compressed sparse rows on the device of the input."""

    indptr: Tensor  # int64 [N+1]; row n is indptr[n]:indptr[n+1]
    indices: Tensor  # int32 [nnz], latent ids, ascending inside a row
    values: Tensor  # float32 [nnz], never zero


def from_entries(row: Tensor, indices: Tensor, values: Tensor, num_rows: int) -> SparseRows:
    """Rows from entries in any order of rows; entries of one row keep the order that they have."""
    order = torch.sort(row, stable=True).indices
    indptr = torch.zeros(num_rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=num_rows), dim=0, out=indptr[1:])
    return SparseRows(indptr, indices[order], values[order])


def concatenate(parts: list[SparseRows]) -> SparseRows:
    """The rows of all parts, in order; at least one part."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.indptr.diff() for part in parts])
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)])
    return SparseRows(indptr, torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


def keep_entries(rows: SparseRows, kept: Tensor) -> SparseRows:
    """The entries where bool [nnz] says so; rows stay as many."""
    before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
    torch.cumsum(kept, dim=0, out=before[1:])
    return SparseRows(before[rows.indptr], rows.indices[kept], rows.values[kept])


def replace_rows(rows: SparseRows, ids: Tensor, others: SparseRows) -> SparseRows:
    """`rows` with the rows `ids`, which are empty, taken from `others` in that order."""
    counts_N = rows.indptr.diff()
    counts_N[ids] = others.indptr.diff()
    indptr = torch.cat([counts_N.new_zeros(1), counts_N.cumsum(dim=0)])
    all_indices = rows.indices.new_empty(len(rows.indices) + len(others.indices))
    all_values = rows.values.new_empty(len(all_indices))
    for part, begin in ((rows, indptr[:-1]), (others, indptr[ids])):
        row = row_of_entry(part)
        at = begin[row] + torch.arange(len(row), device=row.device) - part.indptr[row]
        all_indices[at], all_values[at] = part.indices, part.values
    return SparseRows(indptr, all_indices, all_values)


def row_of_entry(rows: SparseRows) -> Tensor:
    """int64 [nnz]: the row of every entry."""
    counts = rows.indptr.diff()
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
