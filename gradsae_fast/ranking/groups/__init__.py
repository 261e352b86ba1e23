"""Groups of documents against each other: two of them, or every value of a metadata column against all the others."""

from gradsae_fast.ranking.groups.contrast import contrast
from gradsae_fast.ranking.groups.every_group import contrast_groups

__all__ = ["contrast", "contrast_groups"]
