"""Settings: TOML in, dataclasses out, and an error for whatever would be ignored."""

from pathlib import Path
from typing import Any

import pytest

from gradsae_fast import config_from_tables, load_config
from gradsae_fast.errors import ConfigError

TABLES: dict[str, Any] = {
    "model": {"path": "m"},
    "sae": {"path": "s"},
    "corpus": {"path": "c.jsonl"},
    "store": {"path": "out"},
}


def test_a_file_and_the_options_on_top_make_one_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\npath = "m"\n[[sae]]\npath = "a"\n[[sae]]\npath = "b"\nsite = "model.layers.2"\n')
    config = load_config(path, {"corpus": {"path": "c"}, "store": {"path": "o"}, "model": {"dtype": "float16"}})
    assert [sae.path for sae in config.saes] == ["a", "b"]
    assert config.saes[1].site == "model.layers.2"
    assert (config.model.path, config.model.dtype) == ("m", "float16")


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ("corpus", {"txt_column": "t"}, r"unknown setting 'txt_column' in \[corpus\].*Did you mean 'text_column'"),
        ("corpus", {"context_length": "long"}, r"\[corpus\] context_length is 'long'; expected int"),
        ("score", {"preset": "grad"}, r"\[score\] preset is 'grad'; expected one of 'gradsae'"),
        ("score", {"objectives": "next-token"}, r"expected a list"),
        ("corpus", {"contrast_columns": ["a"]}, r"expected a list of 2 str"),
        ("model", {"dtype": "float64"}, r"expected one of 'auto', 'float32'"),
        ("sae", 7, r"\[sae\] is 7; expected a table"),
        ("extra", {}, r"unknown table \[extra\]"),
    ],
)
def test_a_setting_that_would_be_ignored_or_misread_is_refused(table: str, values: Any, message: str) -> None:
    base = TABLES.get(table, {})
    with pytest.raises(ConfigError, match=message):
        config_from_tables({**TABLES, table: {**base, **values} if isinstance(values, dict) else values})


@pytest.mark.parametrize("missing", ["model", "sae", "corpus", "store"])
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"missing \[{missing}\]"):
        config_from_tables({name: table for name, table in TABLES.items() if name != missing})


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")
