"""A model that accelerate spreads over devices; here each is the CPU, with the hooks that move things between them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from gradsae_fast import open_scores
from gradsae_fast.config import ExtractConfig, ModelConfig
from gradsae_fast.describe import describe
from gradsae_fast.errors import ConfigError, ModelError
from gradsae_fast.extract import extract
from gradsae_fast.model import load
from gradsae_fast.model.patching import forward_replaced

Configure = Callable[..., ExtractConfig]


def digests(path: str) -> list[str]:
    return [segment.digest for segment in open_scores(path).segments]


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models are loaded as if every layer had a device of its own; names the modules that have hooks."""
    hooked: list[str] = []
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained

    def load_spread(*args: Any, device_map: str | None = None, **options: Any) -> Any:
        model, info = from_pretrained(*args, **options)
        if device_map is not None:
            layers = {f"model.layers.{index}": "cpu" for index in range(len(model.model.layers))}
            rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
            model = dispatch_model(model, {**layers, **rest}, force_hooks=True)
            hooked.extend(name for name, module in model.named_modules() if "forward" in module.__dict__)
        return model, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load_spread)
    return hooked


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"score": {"preset": "attribution-patching"}},
        {"sae": [{"layer": 1}, {"layer": 2}]},
        {"run": {"exact_dense": 0.5}},
    ],
    ids=["spliced", "error term kept", "two sites", "exact"],
)
def test_a_model_that_is_spread_gives_the_bytes_of_one_that_is_whole(
    configure: Configure, write_sae: Any, spread: list[str], tables: dict[str, Any]
) -> None:
    if "sae" in tables:
        tables = {"sae": [{"path": str(write_sae(name=f"sae-{one['layer']}", **one))} for one in tables["sae"]]}
    tables = {**tables, "run": {**tables.get("run", {}), "tokens_per_batch": 256, "threads": 1, "force": True}}
    whole = configure("whole", **tables)
    extract(whole)
    assert not spread
    config = configure("spread", **{**tables, "model": {"device_map": "auto"}})
    extract(config)
    assert {"model.layers.1", "lm_head"} <= set(spread)
    assert digests(config.store.path) == digests(whole.store.path)
    stored = open_scores(config.store.path)
    assert stored.identity == open_scores(whole.store.path).identity, "it is the same run, and may go on with either"
    assert stored.run["machine"]["spread"]["lm_head"] == "cpu"
    described = describe(stored, [0], site=stored.sites[0], device="cpu", output_score=False)
    assert described.num_rows == 1, "who asks for one device gets it, wherever the run's model was spread"


def test_hooks_of_accelerate_are_still_there_after_a_run(tiny_model_folder: Path, spread: list[str]) -> None:
    lm = load.load_model(ModelConfig(path=str(tiny_model_folder), device_map="auto"))
    before = {name for name, module in lm.model.named_modules() if "forward" in module.__dict__}
    with forward_replaced(lm.layers[0], lambda *_args, **_kwargs: None):
        pass
    assert {name for name, module in lm.model.named_modules() if "forward" in module.__dict__} == before == set(spread)


def test_accelerate_itself_loads_a_model_that_fits_one_device(configure: Configure) -> None:
    whole, spread = configure("whole"), configure("spread", model={"device_map": "auto"})
    extract(whole)
    extract(spread)
    assert digests(spread.store.path) == digests(whole.store.path)


def test_a_device_beside_a_map_and_a_model_that_does_not_fit_are_refused(tiny_model_folder: Path) -> None:
    path = str(tiny_model_folder)
    with pytest.raises(ConfigError, match="device = 'cpu' contradicts it"):
        load.load_model(ModelConfig(path=path, device_map="auto", device="cpu"))
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")])
    with pytest.raises(ModelError, match="left parts of it on cpu and disk"):
        load._check_spread(model, ModelConfig(path=path, device_map="auto"))
