"""Extraction: documents become segments, segments become sparse scores, scores become a store.

The steps are in `engine.line`; an engine says which processes carry them out. Running the same command again goes on
where the last one stopped, with the same engine or another one: committed segments are skipped.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gradsae_fast.config import ExtractConfig
from gradsae_fast.engine.local import extract_alone
from gradsae_fast.engine.on_ray import extract_on_ray
from gradsae_fast.engine.report import ExtractReport, Progress
from gradsae_fast.engine.settings import check_engine
from gradsae_fast.engine.static import extract_own_part
from gradsae_fast.model.objectives import ObjectiveFunction

__all__ = ["ExtractReport", "Progress", "extract"]


def extract(
    config: ExtractConfig,
    *,
    objectives: Mapping[str, ObjectiveFunction] | None = None,
    documents: Iterable[Any] | None = None,
    on_message: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ExtractReport:
    """Score every token of the corpus once and keep the scores in a store.

    `objectives` are functions of your own, by the names that `config.score.objectives` uses for them. `documents` (str,
    mappings or Documents) are scored in place of the corpus that `config` names; they are iterated twice if they can
    be, the second time on another thread; both are for the engine `local`. `on_message` gets the decisions that were
    taken, as sentences. Raises the errors of `gradsae_fast.errors`; what was committed before stays valid.
    """
    tell, on_progress = on_message or (lambda _: None), on_progress or (lambda _: None)
    check_engine(config, objectives, documents)
    match config.run.engine:
        case "local":
            return extract_alone(config, objectives, documents, tell=tell, on_progress=on_progress)
        case "static":
            return extract_own_part(config, os.environ, tell=tell, on_progress=on_progress)
        case "ray":
            return extract_on_ray(config, tell=tell, on_progress=on_progress)
