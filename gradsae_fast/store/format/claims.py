"""What a commit record claims of a segment, checked before a reader uses it: counts, sites and names of columns."""

from collections.abc import Mapping
from typing import Any

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.fields import MOST_SEGMENTS, Fields

COLUMNS = ("sites", "objectives", "values", "columns")  # what segments of a store have in common
_MOST_ROWS = 1 << 32  # tokens, documents or latents: their numbers are stored in 32 bits


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
        site.count("num_latents", _MOST_ROWS)
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
        counts.count(name, _MOST_ROWS)
    nonzeros = counts.inside("nnz")
    for site in facts["sites"]:
        nonzeros.count(site["name"])
