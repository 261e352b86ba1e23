"""cfg.json: what is unknown, missing or of a wrong type is named, never guessed."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import MatchingPursuit
from gradsae_fast.sae.formats.saelens_config import read_config

VALID: dict[str, Any] = {"architecture": "topk", "d_in": 12, "d_sae": 40, "k": 5, "metadata": {}}
PURSUIT: dict[str, Any] = {"architecture": "matching_pursuit"}


def write(path: Path, **changes: Any) -> Path:
    file = path / "cfg.json"
    file.write_text(json.dumps(VALID | changes))
    return file


def test_the_defaults_of_the_format_hold(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert config.apply_b_dec_to_input is True
    assert config.normalize_activations == "none"
    assert config.rescale_acts_by_decoder_norm is False
    assert (config.prepend_bos, config.l0, config.fvu, config.site) == (None, None, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "crosscoder"},
            "'crosscoder'; supported: standard, gated, jumprelu, topk, abstopk, matching_pursuit, transcoder",
        ),
        ({"architecture": "matryoshka_batchtopk"}, "save_inference_model stores it as jumprelu"),
        ({"architecture": None}, "None; supported"),
        ({"activation_fn": "tanh-relu"}, "activation 'tanh-relu'"),
        ({"architecture": "jumprelu", "activation_fn": "topk"}, "activation 'topk' for the architecture 'jumprelu'"),
        ({"normalize_activations": "batch_norm"}, "'batch_norm'; supported: none, expected_average_only_in"),
        ({"apply_b_dec_to_input": "yes"}, "'yes', expected bool"),
        ({"d_in": None}, "d_in in .* None"),
        ({"d_sae": 0}, "d_sae in .* 0, expected a positive whole number"),
        ({"d_sae": True}, "d_sae in .* True"),
        ({"k": None}, "k in .* None, expected a whole number from 1 to 40"),
        ({"k": 41}, "k in .* 41"),
        ({"k": 2.5}, "k in .* 2.5"),
        (PURSUIT | {"max_iterations": 0}, "max_iterations in .* 0, expected a positive whole number"),
        (PURSUIT | {"max_iterations": 2.5}, "max_iterations in .* 2.5, expected int"),
        (PURSUIT | {"residual_threshold": "0.1"}, "residual_threshold in .* '0.1', expected a finite number"),
        (PURSUIT | {"residual_threshold": float("nan")}, "residual_threshold in .* nan, expected a finite number"),
        (PURSUIT | {"residual_threshold": None}, "residual_threshold in .* None, expected a finite number"),
        (PURSUIT | {"stop_on_duplicate_support": 1}, "stop_on_duplicate_support in .* 1, expected bool"),
        (PURSUIT | {"normalize_activations": "covariance_whitening"}, "which matching pursuit cannot take"),
        ({"metadata": []}, "metadata in .* expected an object"),
        ({"metadata": {"prepend_bos": "no"}}, "prepend_bos in .* expected bool"),
        ({"metadata": {"hf_hook_name": 3}}, "hf_hook_name in .* expected str"),
        ({"metadata": {"l0": "32"}}, "l0 in .* expected a number"),
        ({"metadata": {"hook_name": "a", "hook_name_out": "b"}}, "'topk' is of one site; expected a transcoder's"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=message):
        read_config(write(tmp_path, **changes))


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"d_in": 3', "\udcff"])
def test_unreadable_json_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "cfg.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SaeError, match=r"cfg\.json"):
        read_config(file)


def test_a_pursuit_stops_as_the_library_says_where_the_file_says_nothing(tmp_path: Path) -> None:
    rule = read_config(write(tmp_path, **PURSUIT)).pursuit
    assert rule == MatchingPursuit(max_iterations=12, residual_threshold=1e-2, stop_on_repeat=True)
    stops = {"max_iterations": None, "residual_threshold": -1, "stop_on_duplicate_support": False}
    rule = read_config(write(tmp_path, **PURSUIT, **stops)).pursuit
    assert rule == MatchingPursuit(max_iterations=12, residual_threshold=0.0, stop_on_repeat=False)
    assert read_config(write(tmp_path)).pursuit is None


def test_a_measurement_that_was_never_taken_is_no_measurement(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, metadata={"l0": float("nan"), "fvu": 0.2})).l0 is None


@pytest.mark.parametrize(("old", "new"), [(True, "expected_average_only_in"), (False, "none"), (None, "none")])
def test_the_boolean_normalisation_of_early_releases_is_translated(old: Any, new: str, tmp_path: Path) -> None:
    assert read_config(write(tmp_path, normalize_activations=old)).normalize_activations == new


def test_top_k_of_an_early_release_needs_its_k(tmp_path: Path) -> None:
    file = tmp_path / "cfg.json"
    file.write_text(json.dumps({"d_in": 12, "d_sae": 40, "activation_fn_str": "topk"}))
    with pytest.raises(SaeError, match=r"k in .* None"):
        read_config(file)
