"""The JSON or YAML file beside the weights of many formats: reading it, and its values by type.

Every error names the file and the key, says what was found and what was expected.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from gradsae_fast.errors import SaeError

T = TypeVar("T")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object at `path`. Raises SaeError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SaeError(f"{path} is missing; fetch or copy the whole SAE folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SaeError(f"{path} is not readable as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise SaeError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML mapping at `path`, plain values alone. Raises SaeError where there is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SaeError(
            f"{path} is missing; fetch or copy it with the weights: it says what they read and write"
        ) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SaeError(f"{path} is not readable as YAML ({error}); fetch it again") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SaeError(f"{path} holds a YAML {type(content).__name__}, expected a mapping of names")
    return content


def read_optional(raw: Mapping[str, Any], key: str, kind: type[T], path: Path) -> T | None:
    """The value of `key` where there is one; SaeError where it is not of that type."""
    value = raw.get(key)
    # True is an int to Python and a mistake to us.
    if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    raise SaeError(f"{key} in {path} is {value!r}, expected {kind.__name__}; correct the configuration")


def read_object(raw: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The object under `key`; SaeError where there is none."""
    found = read_optional(raw, key, dict, path)
    if found is None:
        raise SaeError(f"{path} has no {key!r}, it has {', '.join(sorted(raw)) or 'nothing'}; is it of another format?")
    return found


def read_size(raw: Mapping[str, Any], key: str, path: Path, *, least: int = 1) -> int:
    """A whole number, positive unless `least` is 0."""
    size = read_optional(raw, key, int, path)
    if size is None or size < least:
        expected = "a positive whole number" if least else "a whole number, 0 or more"
        raise SaeError(f"{key} in {path} is {size!r}, expected {expected}")
    return size


def read_positive(raw: Mapping[str, Any], key: str, path: Path) -> float:
    """A positive finite number."""
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise SaeError(f"{key} in {path} is {value!r}, expected a positive finite number")
    return float(value)


def check_k(k: object, num_latents: int, path: Path, *, key: str = "k") -> int:
    """The k of a top-k rule as a whole number from 1 to the number of latents."""
    if isinstance(k, bool) or not isinstance(k, int | float) or not 1 <= k <= num_latents or k != int(k):
        raise SaeError(f"{key} in {path} is {k!r}, expected a whole number from 1 to {num_latents}")
    return int(k)
