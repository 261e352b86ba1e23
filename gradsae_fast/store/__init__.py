"""The store: scores in committed Zarr segments, with writer, reader and verification; numpy and zarr, no torch.

`FORMAT.md` beside this file is the on-disk format. The rooms, from the ground up: `format` (what bytes mean), `places`
(disks and buckets), `arrays` (Zarr arrays in pieces), `records` (what says which segments there are), `sidecars` (made
from complete stores), `changes` (stores rewritten); reader, writer, verification and repair are here.
"""

from gradsae_fast.store.arrays.site import DocumentSums, LatentStats, StoredSite
from gradsae_fast.store.format.layout import FORMAT_VERSION
from gradsae_fast.store.reader import ScoreStore, open_scores
from gradsae_fast.store.repair import repair
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.described import Described
from gradsae_fast.store.sidecars.exact import ExactDense
from gradsae_fast.store.sidecars.index import StoreIndex
from gradsae_fast.store.verify import Fault, verify
from gradsae_fast.store.writer import ScoreWriter

__all__ = [
    "FORMAT_VERSION",
    "Described",
    "DocumentSums",
    "ExactDense",
    "Fault",
    "LatentStats",
    "ScoreStore",
    "ScoreWriter",
    "StoreIndex",
    "StoredSegment",
    "StoredSite",
    "open_scores",
    "repair",
    "verify",
]
