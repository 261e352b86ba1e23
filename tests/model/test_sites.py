"""A site in its three spellings, and what is said of one that does not exist."""

import pytest

from gradsae_fast.errors import ModelError
from gradsae_fast.model.load import LanguageModel


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("model.layers.2", "model.layers.2"),
        ("model.layers.2.output", "model.layers.2"),
        ("blocks.2.hook_resid_post", "model.layers.2"),
        ("blocks.2.hook_resid_pre", "model.layers.1"),
        ("blocks.2.hook_mlp_out", "model.layers.2.mlp"),
        ("blocks.2.hook_attn_out", "model.layers.2.self_attn"),
        ("model.layers.0.mlp", "model.layers.0.mlp"),
    ],
)
def test_every_spelling_names_a_module(spelling: str, path: str, tiny_lm: LanguageModel) -> None:
    site = tiny_lm.site(spelling)
    assert site.path == path
    assert site.layer == int(path.split(".")[2])
    assert site.is_layer is (path.count(".") == 2)


@pytest.mark.parametrize(
    "spelling", ["model.layers.4", "blocks.4.hook_resid_post", "blocks.1.hook_z", "layers.1", "model.norm", ""]
)
def test_a_site_that_does_not_exist_is_refused_with_what_does(spelling: str, tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"no site .*expected model\.layers\.L.*L from 0 to 3"):
        tiny_lm.site(spelling)


def test_the_embedding_is_no_site(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match="expected layer 1 or above"):
        tiny_lm.site("blocks.0.hook_resid_pre")
