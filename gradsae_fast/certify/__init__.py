"""The certificate: how well a store's influences agree with exact ablation, measured on a sample of that store.

`certify` reopens the run that made a store, draws a sample of its scores, ablates each exactly, and keeps what it
found inside the store.
"""

from gradsae_fast.certify.measure import certify
from gradsae_fast.certify.sample import Sampling

__all__ = ["Sampling", "certify"]
