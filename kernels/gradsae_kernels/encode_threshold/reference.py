"""The oracle of `encode_threshold`: dense and obvious. It needs [N, C] several times over.

Letters: N tokens, D model width, C latents.
"""

import torch
from torch import Tensor

from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.encode_threshold.rule import ThresholdRule
from gradsae_kernels.sparse_rows import SparseRows


def encode_threshold_reference(x_ND: Tensor, w_enc_CD: Tensor, rule: ThresholdRule) -> SparseRows:
    """Every pre-activation, then the rule, then the non-zeros; raises ContractError for a row that is not finite."""
    u_NC = x_ND.float() @ w_enc_CD.float().T + rule.bias_C
    active_NC = u_NC > rule.above_C
    if rule.below_C is not None:
        value_NC = u_NC
        active_NC = active_NC | (u_NC < rule.below_C)
    elif rule.scale_C is not None and rule.offset_C is not None:
        value_NC = torch.relu(rule.scale_C * u_NC + rule.offset_C)
    else:
        value_NC = torch.relu(u_NC)
    wrong_N = (torch.isnan(u_NC) | (active_NC & ~torch.isfinite(value_NC))).any(dim=1)
    if wrong_N.any():
        raise nonfinite_row(int(wrong_N.to(torch.uint8).argmax()))
    active_NC = active_NC & (value_NC != 0)
    indptr = torch.zeros(len(x_ND) + 1, dtype=torch.int64, device=x_ND.device)
    indptr[1:] = active_NC.sum(dim=1).cumsum(dim=0)
    return SparseRows(indptr, active_NC.nonzero()[:, 1].to(torch.int32), value_NC[active_NC])
