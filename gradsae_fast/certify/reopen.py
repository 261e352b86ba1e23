"""The run that made a store, prepared again from what the store records about it."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.errors import IdentityError, StoreError
from gradsae_fast.model.objectives import ObjectiveFunction
from gradsae_fast.prepare import Prepared, prepare, with_sink_limits
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.arrays.encoding import Encoding
from gradsae_fast.store.records.identity import RunRecord, create_or_compare


def reopen(
    store: ScoreStore,
    *,
    device: str | None = None,
    functions: Mapping[str, ObjectiveFunction] | None = None,
    documents: Iterable[Any] | None = None,
) -> tuple[Prepared, dict[str, tuple[Any, Any]]]:
    """Load the model, the SAEs and the corpus of a store, as they were when it was scored.

    Returns the run, sinks recognised as then, and where it computes otherwise: field of the identity -> (stored, now).
    Only device, kernels and library versions may differ, as they decide over last bits.

    Raises:
        StoreError: the store does not record its configuration or its gate.
        IdentityError: model, SAEs, corpus, tokens, method or batching are no longer those of the store.
        GradsaeError: anything that loading raises.
    """
    passed = store.facts("gate")
    if "config" not in store.run or passed is None:
        raise StoreError(
            f"{store.path} does not record the configuration and the gate of its run; expected a store made by "
            "`gradsae extract`"
        )
    prepared = prepare(_config_of(store, device), functions, documents)
    identity = copy.deepcopy(prepared.identity())
    differences = dict(_take_over(identity, store.identity))
    _compare(store, identity, len(prepared.plan.segments))
    return with_sink_limits(prepared, passed["median_norms"]), differences


def _config_of(store: ScoreStore, device: str | None) -> ExtractConfig:
    """The recorded configuration, in the store's precision, at the store's present place, and on a device of choice."""
    tables: dict[str, Any] = copy.deepcopy(store.run["config"])
    tables["sae"] = tables.pop("saes")
    tables["model"]["dtype"] = store.identity["model"]["dtype"].removeprefix("torch.")
    if device is not None:  # on one device, wherever the run's model was spread
        tables["model"] |= {"device": device, "device_map": None}
    tables["store"]["path"] = str(store.path)
    return config_from_tables(tables)


def _take_over(identity: dict[str, Any], stored: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Give the fields that decide over last bits only their stored values; yields those that differed."""
    tables = [
        ("model", identity["model"], stored["model"], ("device", "float32_matmul_precision")),
        ("versions", identity["versions"], stored["versions"], tuple(identity["versions"])),
        *((f"saes.{site}", sae, stored["saes"].get(site, {}), ("kernels",)) for site, sae in identity["saes"].items()),
    ]
    for label, now, was, names in tables:
        for name in names:
            if name in was and was[name] != now[name]:
                yield f"{label}.{name}", (was[name], now[name])
                now[name] = was[name]


def _compare(store: ScoreStore, identity: dict[str, Any], num_segments: int) -> None:
    encoding = Encoding(
        precision_bits=store.precision_bits,
        profile=store.profile,
        aggregates_include_special=store.aggregates_include_special,
    )
    try:
        create_or_compare(
            store.path, RunRecord(identity=identity, run={}, num_segments=num_segments, encoding=encoding)
        )
    except IdentityError as error:
        raise IdentityError(
            f"{error}\nA certificate speaks about these very scores: restore the model, SAE and corpus that made them."
        ) from error
