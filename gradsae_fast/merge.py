"""Stores made into one, and the index of it: parts of one run that lie apart, or corpora that were scored apart."""

from collections.abc import Callable, Sequence

from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import open_scores
from gradsae_fast.store.changes.merge import MergeReport, merge_segments
from gradsae_fast.store.places.place import Place


def merge(
    sources: Sequence[str | Place],
    out: str | Place,
    *,
    on_message: Callable[[str], None] | None = None,
    on_segment: Callable[[int, int], object] | None = None,
) -> MergeReport:
    """Copy stores into a new one that answers for all of them; the same call goes on where a killed one stopped.

    Runs of one identity (the same corpus, scored in parts) are put together segment by segment; runs that differ in
    their documents alone become generations, as if each had been appended. `on_message` is told what was not carried
    over, `on_segment` how many segments are there and of how many. The sources are not touched.

    Raises:
        IdentityError: model, SAEs, method or another setting differ; shows the differing fields side by side.
        CorpusError: documents of different runs have one key.
        GradsaeError: what `store.merge.merge_segments` raises.
    """
    report = merge_segments(sources, out, tell=on_message, on_segment=on_segment)
    store = open_scores(report.path)
    if store.segments and store.index is None:
        build_index(report.path)
    return report
