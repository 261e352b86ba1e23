"""Names as path components, and dtypes of latent ids."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.layout import component, latent_dtype, name_of, path_of


@settings(deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=20))
@example("..")
@example("zarr.json")
@example("__reserved")
@example("a/b\\c:\x00~%41")
@example("\udce9")
def test_any_name_becomes_one_safe_component_and_comes_back(name: str) -> None:
    written = component(name)
    assert name_of(written) == name
    assert set(written) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.%ABCDEF")
    assert written not in (".", "..", "zarr.json")
    assert not written.startswith(("__", "."))


@settings(deadline=None)
@given(st.text(max_size=8), st.text(max_size=8))
def test_names_that_differ_stay_apart_on_disks_that_ignore_case(a: str, b: str) -> None:
    if a and b and a != b:
        assert component(a).lower() != component(b).lower()


def test_site_names_stay_readable() -> None:
    assert component("model.layers.12") == "model.layers.12"
    assert path_of("projection/{objective}", "a:b") == "projection/a%3Ab"


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_name_that_no_file_system_takes_is_refused(name: str) -> None:
    with pytest.raises(StoreError, match="expected 1 to 255"):
        component(name)


def test_latent_ids_take_two_bytes_up_to_65536_latents() -> None:
    assert latent_dtype(65_536) == "uint16"
    assert latent_dtype(65_537) == "uint32"
