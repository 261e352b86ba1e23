"""Whether the weights of all sites' SAEs fit the device, and what to do where they do not."""

import torch

from benchmarks.gpu.end_to_end.case import Case
from benchmarks.random_saes import SAMPLE_TOKENS

OWN_SHARE = 0.25  # of the device's memory that weights of the sites' own may take; above, all sites have the same ones
SAMPLE_PASSES = 4  # fp32 [S, C] at a time, while thresholds are fitted


def shares_weights(case: Case, dtype: torch.dtype, total_bytes: float) -> bool:
    """Whether the sites have the same encoder and decoder: the bytes that are read are as many, what is stored is not.

    Only the second cache could tell the difference, and one site's weights are larger than it anyway.
    """
    return weight_bytes(case, dtype, shared=False) > OWN_SHARE * total_bytes


def weight_bytes(case: Case, dtype: torch.dtype, *, shared: bool) -> int:
    """Of all encoders and decoders together."""
    return dtype.itemsize * case.site_weights * (1 if shared else case.sites)


def why_no_room(case: Case, dtype: torch.dtype, *, shared: bool, free_bytes: float) -> str:
    """Why the weights, and what fitting their thresholds takes, do not fit; empty where they do."""
    needed = weight_bytes(case, dtype, shared=shared) + SAMPLE_PASSES * 4 * SAMPLE_TOKENS * case.latents
    if needed <= free_bytes:
        return ""
    return f"the SAEs need {needed / 1e9:.1f} GB; {free_bytes / 1e9:.1f} GB of device memory are free beside the model"
