"""Presets, objectives, and contradictions between settings."""

from typing import Any

import pytest

from gradsae_fast import config_from_tables
from gradsae_fast.config import ScoreConfig
from gradsae_fast.errors import ConfigError
from gradsae_fast.method import check_config, resolve_method


@pytest.mark.parametrize(
    ("preset", "error_term", "splice", "objective", "include_special"),
    [
        ("gradsae", False, "unmasked", "next-token", False),
        ("attribution-patching", True, "none", "next-token", False),
        ("paper", False, "all", "continuation-prob", True),
        ("authors-code", False, "all", "top-token:prob", True),
    ],
)
def test_presets_are_those_of_the_method(
    preset: Any, error_term: bool, splice: str, objective: str, include_special: bool
) -> None:
    method = resolve_method(ScoreConfig(preset=preset))
    found = (method.use_error_term, method.splice, method.objectives, method.include_special)
    assert found == (error_term, splice, (objective,), include_special)


def test_the_error_term_can_be_switched_in_any_preset() -> None:
    assert resolve_method(ScoreConfig(use_error_term=True)).splice == "none"
    assert resolve_method(ScoreConfig(preset="attribution-patching", use_error_term=False)).splice == "unmasked"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"score": {"use_error_term": True, "splice": "all"}}, "splice = 'all' has no effect"),
        ({"score": {"objectives": ["entropi"]}}, "unknown objective 'entropi'.*Did you mean 'entropy'"),
        ({"score": {"objectives": ["entropy", "entropy"]}}, "repetition"),
        ({"score": {"objectives": ["continuation"]}}, "needs prompt and answer columns"),
        ({"corpus": {"path": "c", "prompt_column": "q"}}, "go together"),
        ({"corpus": {"path": "c", "contrast_columns": ["a", "b"]}}, "contrast_columns and the objective 'logit-diff'"),
        ({"corpus": {"path": "c", "context_length": 64, "overlap": 63}}, "no room for new tokens"),
        ({"corpus": {"path": "c", "max_documents": 0}}, "max_documents is 0; expected at least 1"),
        ({"store": {"path": "o", "precision_bits": 8}}, "precision_bits is 8; expected one of"),
        ({"score": {"sink_norm_ratio": 0.5}}, "expected more than 1, or 0 for off"),
        ({"run": {"tokens_per_batch": 0}}, "tokens_per_batch is 0"),
        ({"sae": []}, "no SAE given"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tables: dict[str, Any], message: str) -> None:
    base: dict[str, Any] = {
        "model": {"path": "m"},
        "sae": {"path": "s"},
        "corpus": {"path": "c"},
        "store": {"path": "o"},
    }
    with pytest.raises(ConfigError, match=message):
        check_config(config_from_tables({**base, **tables}))
