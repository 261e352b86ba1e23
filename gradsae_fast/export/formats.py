"""The formats by name, behind one function."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradsae_fast.errors import QueryError
from gradsae_fast.export.delphi import write_delphi
from gradsae_fast.export.h5ad import write_anndata
from gradsae_fast.export.neuronpedia import write_neuronpedia
from gradsae_fast.export.npz import write_csr
from gradsae_fast.export.parquet import write_parquet
from gradsae_fast.export.target import Exported
from gradsae_fast.ranking.question import one_of
from gradsae_fast.store import ScoreStore

FORMATS: Mapping[str, Callable[..., Exported]] = {
    "parquet": write_parquet,
    "csr": write_csr,
    "anndata": write_anndata,
    "neuronpedia": write_neuronpedia,
    "delphi": write_delphi,
}


def export_scores(store: ScoreStore, path: str | Path, *, to: str, **options: Any) -> Exported:
    """Write a store in the format `to`; the options are those of its function in `FORMATS`.

    Raises:
        QueryError: the format is unknown, an option has no effect on it, or as its function says.
    """
    write = FORMATS[one_of("format", to, list(FORMATS))]
    taken = [name for name in inspect.signature(write).parameters if name not in ("store", "path")]
    for name in options:
        if name not in taken:
            raise QueryError(
                f"{name} ({_flag(name)}) has no effect on the format {to!r}; leave it out; "
                f"it takes {', '.join(map(_flag, taken))}"
            )
    return write(store, path, **options)


def _flag(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
