"""Sparse operators for sparse autoencoders: encode without a dense [N, C], and touch only the active decoder rows.

    encode_threshold, encode_topk,
    encode_groupmax                  x, encoder         -> SparseRows
    encode_matching_pursuit          x, decoder         -> SparseRows
    project                          SparseRows, grad   -> one projection for each active pair
    project_documents                SparseRows, grad   -> one influence sum for each document and latent
    decode                           SparseRows         -> reconstruction

Nothing here needs the rest of the project; `kernels/README.md` has the math, the numeric contract and measured tables.
"""

from gradsae_kernels.backend import Backend, BackendUnavailable, choose_backend
from gradsae_kernels.configuration import kernel_configuration
from gradsae_kernels.contracts import ContractError
from gradsae_kernels.decode import decode
from gradsae_kernels.emit.plan import EmitPlan, EmitVariant, choose_plan
from gradsae_kernels.emit.tune import tune_plan
from gradsae_kernels.encode_groupmax import encode_groupmax
from gradsae_kernels.encode_matching_pursuit import encode_matching_pursuit
from gradsae_kernels.encode_threshold import encode_threshold
from gradsae_kernels.encode_topk import encode_topk
from gradsae_kernels.project import project, project_documents
from gradsae_kernels.sparse_rows import SparseRows

__all__ = [
    "Backend",
    "BackendUnavailable",
    "ContractError",
    "EmitPlan",
    "EmitVariant",
    "SparseRows",
    "choose_backend",
    "choose_plan",
    "decode",
    "encode_groupmax",
    "encode_matching_pursuit",
    "encode_threshold",
    "encode_topk",
    "kernel_configuration",
    "project",
    "project_documents",
    "tune_plan",
]
