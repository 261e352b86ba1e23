"""What an engine cannot do is refused before a model is loaded."""

from collections.abc import Callable
from typing import Any

import pytest

from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import ConfigError
from gradsae_fast.extract import extract

Configure = Callable[..., ExtractConfig]
NOWHERE = {"path": "no/such/model"}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"workers": 2}, "workers would have no effect with the engine 'local'"),
        ({"engine": "static", "gpus_per_worker": 1}, "gpus_per_worker would have no effect with the engine 'static'"),
        ({"engine": "static", "stall_minutes": 1}, "stall_minutes would have no effect"),
        ({"engine": "ray", "workers": 0}, "workers is 0; expected a number above 0"),
        ({"engine": "ray", "gpus_per_worker": -1}, "gpus_per_worker is -1"),
        ({"engine": "ray", "stall_minutes": 0}, "stall_minutes is 0"),
        ({"engine": "static", "exact_dense": 0.2}, "then the same command with --engine local"),
        ({"engine": "ray", "trace": True}, "a profile is of one process"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(configure: Configure, run: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extract(configure(model=NOWHERE, run=run))


@pytest.mark.parametrize("engine", ["static", "ray"])
def test_what_cannot_be_sent_to_workers_is_refused(configure: Configure, engine: str) -> None:
    config = configure(model=NOWHERE, run={"engine": engine})
    with pytest.raises(ConfigError, match="documents of your own cannot be sent to the workers"):
        extract(config, documents=["a text"])
    with pytest.raises(ConfigError, match="objectives of your own cannot be sent"):
        extract(config, objectives={"mine": lambda logits_BTV, _ids, _mask: logits_BTV.sum()})


def test_ray_says_which_gpu_a_worker_has(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="Ray says which GPU a worker has"):
        extract(configure(model={**NOWHERE, "device": "cuda:1"}, run={"engine": "ray"}))
