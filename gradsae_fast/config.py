"""What a run is asked to do: TOML in, frozen dataclasses out.

    [model]   path = "..."                      [score]  preset = "gradsae"
    [[sae]]   path = "..."                      [store]  path = "out.gradsae"
    [corpus]  path = "..."                      [run]    tokens_per_batch = 2048

Each table of a TOML file is one dataclass below and each key one of its fields; unknown keys and settings without
effect are errors.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from gradsae_fast.errors import ConfigError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The language model: a transformers folder or hub id."""

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: float32 on CPU, bfloat16 on a GPU
    device: str = "auto"  # auto: cuda where there is one, else cpu
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] = "auto"
    # how transformers computes attention; auto: as it chooses for the architecture
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    # a model larger than one GPU: how accelerate spreads its layers over the GPUs that a worker sees


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeConfig:
    """One SAE; `site` overrides the site that its own metadata names."""

    path: str
    site: str | None = None
    reads: str | None = None  # of transcoders: what the encoder reads, where the file does not say it
    revision: str | None = None
    norm_factor: float | None = None  # for `expected_average_only_in` SAEs that were saved without it
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the two matrices in memory
    k: int | None = None  # for TopK SAEs whose file does not say it (Qwen Scope's repository name does)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusConfig:
    """Where the documents are, which columns mean what, and how long documents are cut into windows."""

    path: str
    text_column: str = "text"
    id_column: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    contrast_columns: tuple[str, str] | None = None  # y1, y2 of logit-diff
    patch_column: str | None = None  # attribution patching: a text of as many tokens, to compare activations with
    metadata_columns: tuple[str, ...] | None = None  # None: all other columns
    subset: str | None = None  # configuration of a dataset by name
    split: str = "train"  # of a dataset by name
    max_documents: int | None = None
    context_length: int = 1024  # tokens of a window, BOS included
    overlap: int = 128  # tokens that a later window sees again as context
    bos: Literal["auto", "always", "never"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """What is differentiated and where; None and () mean: as the preset says."""

    preset: Literal["gradsae", "attribution-patching", "paper", "authors-code"] = "gradsae"
    objectives: tuple[str, ...] = ()
    use_error_term: bool | None = None
    splice: Literal["unmasked", "all"] | None = None
    path_steps: int = 0  # integrated gradients on latents: points on the path from all-zero latents; 0: off
    sink_norm_ratio: float = 10.0  # mask tokens whose norm exceeds this many medians; 0 switches it off
    mask_token_ids: tuple[int, ...] = ()
    nonfinite: Literal["raise", "quarantine", "keep"] = "raise"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where scores go, and how exactly they are kept."""

    path: str
    precision_bits: int = 10  # significand bits of stored floats; 23 is exact
    profile: Literal["compact", "portable"] = "compact"
    append: bool = False  # the store is there: its run goes on with another corpus, as a further generation


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How the work is done; only the batch sizes take part in byte identity."""

    tokens_per_batch: int = 2048
    head_chunk_tokens: int = 512  # rows for which logits exist at one time
    threads: int | None = None
    force: bool = False  # go on although the gate failed; recorded
    trace: bool = False  # measure where the time of scoring and storing goes, and write a trace beside the store
    exact_dense: float | None = None  # ablate latents exactly that fire on more than this share of the corpus's tokens
    engine: Literal["local", "static", "ray"] = "local"  # static: this process is one of many that a launcher started
    workers: int | None = None  # of Ray; None: one for each GPU (or for each gpus_per_worker), without GPUs one a node
    gpus_per_worker: float | None = None  # of Ray; None: 1 where there are any, else 0
    ray_address: str | None = None  # of a cluster; None: that in RAY_ADDRESS, else Ray is started on this machine
    stall_minutes: float | None = None  # Ray: fail when nothing was committed for so long; None: 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractConfig:
    """Everything that `extract` needs."""

    model: ModelConfig
    saes: tuple[SaeConfig, ...]
    corpus: CorpusConfig
    store: StoreConfig
    score: ScoreConfig = ScoreConfig()
    run: RunConfig = RunConfig()


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> ExtractConfig:
    """Read a TOML file; `overrides` ({"corpus": {"path": ...}, ...}) win over what it says."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file at {path}. Check the path given with --config.") from error
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}. Mend the file, or start from `gradsae extract --help`."
        ) from error
    return config_from_tables(_merge(tables, overrides or {}))


def config_from_tables(tables: dict[str, Any]) -> ExtractConfig:
    """Build the configuration from nested tables, as TOML has them (`sae` is a table or a list of tables)."""
    known = {"model", "sae", "corpus", "store", "score", "run"}
    for name in tables:
        if name not in known:
            raise ConfigError(
                f"unknown table [{name}]; expected {', '.join(sorted(known))}.{closest_hint(name, known)}"
            )
    for name in ("model", "sae", "corpus", "store"):
        if name not in tables:
            raise ConfigError(
                f"missing [{name}]: give --{'out' if name == 'store' else name}, or the table in --config."
            )
    saes = tables["sae"] if isinstance(tables["sae"], list) else [tables["sae"]]
    return ExtractConfig(
        model=_build(ModelConfig, tables["model"], "model"),
        saes=tuple(_build(SaeConfig, table, "sae") for table in saes),
        corpus=_build(CorpusConfig, tables["corpus"], "corpus"),
        store=_build(StoreConfig, tables["store"], "store"),
        score=_build(ScoreConfig, tables.get("score", {}), "score"),
        run=_build(RunConfig, tables.get("run", {}), "run"),
    )


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in overrides.items():
        merged[name] = (
            {**merged[name], **value} if isinstance(merged.get(name), dict) and isinstance(value, dict) else value
        )
    return merged


def _build(cls: type[_T], table: Any, name: str) -> _T:
    """One dataclass from one table: unknown, missing and mistyped keys are named."""
    if not isinstance(table, dict):
        raise ConfigError(f"[{name}] is {table!r}; expected a table of settings.")
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in hints:
            raise ConfigError(
                f"unknown setting {key!r} in [{name}]; expected {', '.join(hints)}.{closest_hint(key, hints)}"
            )
    values = {key: _checked(value, hints[key], f"[{name}] {key}") for key, value in table.items()}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is dataclasses.MISSING:
            raise ConfigError(f"[{name}] needs {field.name!r}. Add it to the table or give it on the command line.")
    return cls(**values)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation wants it; TOML arrays become tuples and integers may stand for floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        rest = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _checked(value, rest[0], where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(repr, arguments))}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise ConfigError(f"{where} is {value!r}; expected a list of {_length(arguments)} {arguments[0].__name__}.")
        return tuple(_checked(item, arguments[0], where) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}; expected {hint.__name__}.")
    return value


def _length(arguments: tuple[Any, ...]) -> str:
    return "any number of" if arguments[-1] is Ellipsis else str(len(arguments))


def closest_hint(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known one that looks most like it, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
