"""Rankings of a score store: latents, documents and tokens by influence, and contrasts of two groups.

Every question is answered out of core, one segment at a time, and comes back as an Arrow table whose schema metadata
says what its numbers mean (`query_of` reads it). No torch, no GPU.
"""

from gradsae_fast.ranking.answer import query_of
from gradsae_fast.ranking.contrast import contrast
from gradsae_fast.ranking.documents import rank_documents
from gradsae_fast.ranking.export import write_table
from gradsae_fast.ranking.latents import rank_latents
from gradsae_fast.ranking.tokens import rank_tokens

__all__ = ["contrast", "query_of", "rank_documents", "rank_latents", "rank_tokens", "write_table"]
