"""Rankings of a score store: latents, documents and tokens by influence, contrasts of groups, comparisons of stores.

Every question is answered out of core, one segment at a time, and comes back as an Arrow table whose schema metadata
says what its numbers mean (`query_of` reads it). No torch, no GPU.
"""

from gradsae_fast.ranking.answer import query_of
from gradsae_fast.ranking.documents import rank_documents
from gradsae_fast.ranking.export import write_table
from gradsae_fast.ranking.groups import contrast, contrast_groups
from gradsae_fast.ranking.latents import rank_latents
from gradsae_fast.ranking.oddities import rank_oddities
from gradsae_fast.ranking.stability import rank_stability
from gradsae_fast.ranking.tokens import rank_tokens

__all__ = [
    "contrast",
    "contrast_groups",
    "query_of",
    "rank_documents",
    "rank_latents",
    "rank_oddities",
    "rank_stability",
    "rank_tokens",
    "write_table",
]
