"""Influence databases over whole corpora: the torch-free door.

Open a store and ask it questions without torch or a GPU; scoring has doors of its own: `gradsae_fast.extract.extract`
for a corpus, `gradsae_fast.prompt.score_prompt` for one prompt.
"""

from gradsae_fast.config import ExtractConfig, config_from_tables, load_config
from gradsae_fast.errors import GradsaeError
from gradsae_fast.ranking import (
    contrast,
    contrast_groups,
    rank_documents,
    rank_latents,
    rank_oddities,
    rank_stability,
    rank_tokens,
    write_table,
)
from gradsae_fast.store import open_scores, repair, verify

__all__ = [
    "ExtractConfig",
    "GradsaeError",
    "config_from_tables",
    "contrast",
    "contrast_groups",
    "load_config",
    "open_scores",
    "rank_documents",
    "rank_latents",
    "rank_oddities",
    "rank_stability",
    "rank_tokens",
    "repair",
    "verify",
    "write_table",
]
