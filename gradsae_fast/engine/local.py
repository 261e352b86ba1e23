"""The engine `local`: this process scores every segment that is left."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from gradsae_fast.config import ExtractConfig
from gradsae_fast.engine.finish import make_index
from gradsae_fast.engine.line import begin, score
from gradsae_fast.engine.report import ExtractReport, Progress
from gradsae_fast.exact import exact_dense
from gradsae_fast.model.objectives import ObjectiveFunction


def extract_alone(
    config: ExtractConfig,
    objectives: Mapping[str, ObjectiveFunction] | None,
    documents: Iterable[Any] | None,
    *,
    tell: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> ExtractReport:
    """Score what is left of a run, and finish it: index, and exact effects where they are asked for."""
    with begin(config, objectives, documents, tell=tell) as begun:
        report = score(begun, begun.all_segments, on_progress=on_progress)
    make_index(report.store, tell=tell, shared=False)
    if config.run.exact_dense is None:
        return report
    return replace(report, exact=exact_dense(begun.prepared, share=config.run.exact_dense, tell=tell))
