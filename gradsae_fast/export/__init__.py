"""Stores as files that other tools open: Parquet, scipy CSR, AnnData, Neuronpedia JSONL and delphi's cache.

Every export names in itself the run, the model and the settings that its numbers come from (`provenance`), is made
segment by segment, and appears under its name only when it is whole. No torch, no GPU.
"""

from gradsae_fast.export.delphi import write_delphi
from gradsae_fast.export.formats import FORMATS, export_scores
from gradsae_fast.export.h5ad import write_anndata
from gradsae_fast.export.matrix import to_csr
from gradsae_fast.export.neuronpedia import write_neuronpedia
from gradsae_fast.export.npz import read_csr, write_csr
from gradsae_fast.export.parquet import write_parquet
from gradsae_fast.export.target import Exported

__all__ = [
    "FORMATS",
    "Exported",
    "export_scores",
    "read_csr",
    "to_csr",
    "write_anndata",
    "write_csr",
    "write_delphi",
    "write_neuronpedia",
    "write_parquet",
]
