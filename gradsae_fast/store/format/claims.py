"""What a commit record claims of a segment, checked before a reader uses it: counts, sites and names of columns.

How much memory an array takes follows from these numbers, and a few bytes of a store can stand for a long array. So
they are bounded, and far above what is scored: the widest SAE that anyone has described has 2^25 latents, a segment of
`gradsae extract` has 2^18 tokens or is one document. `contracts` holds writers to the same bounds.
"""

from collections.abc import Mapping
from typing import Any

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.fields import MOST_SEGMENTS, Fields

COLUMNS = ("sites", "objectives", "values", "columns")  # what segments of a store have in common
MOST_LATENTS = 1 << 25  # of a site
MOST_TOKENS = 1 << 24  # of a segment, and its documents
MOST_NONZEROS = 1 << 31  # of a site in a segment
LONGEST_STRINGS = 1 << 32  # bytes of a column of a segment
LONGEST_OBJECT = 1 << 32  # bytes


def check_claims(facts: Mapping[str, Any], number: int, where: object) -> None:
    """Check all that is said of the segment of this number.

    Raises:
        StoreError: a field is missing, of another type or out of range; names it. Or it is of another segment.
    """
    check_columns(facts, where)
    check_counts(facts, where)
    if facts["segment"] != number:
        raise StoreError(f"{where} is that of segment {facts['segment']}: copy the store again from where it came")


def check_columns(facts: Mapping[str, Any], where: object) -> None:
    """Check what the segments of a store have in common.

    Raises:
        StoreError: as `check_claims`.
    """
    fields = Fields(facts, where)
    names = []
    for site in fields.each("sites"):
        names.append(site.text("name"))
        site.count("num_latents", MOST_LATENTS)
    if len(set(names)) != len(names):
        raise StoreError(f"{where} is damaged or was not written by gradsae-fast: it has a site twice")
    for name in COLUMNS[1:]:
        fields.texts(name)


def check_counts(facts: Mapping[str, Any], where: object) -> None:
    """Check what is a segment's own, given that its sites are sound.

    Raises:
        StoreError: as `check_claims`.
    """
    fields = Fields(facts, where)
    fields.count("segment", MOST_SEGMENTS)
    counts = fields.inside("counts")
    for name in ("tokens", "documents", "masked"):
        counts.count(name, MOST_TOKENS)
    nonzeros = counts.inside("nnz")
    for site in facts["sites"]:
        nonzeros.count(site["name"], MOST_NONZEROS)
