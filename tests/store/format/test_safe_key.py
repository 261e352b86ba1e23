"""Text of a store that becomes a path stays below the store, whatever it is; names never leave their folder."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.layout import component, name_of
from gradsae_fast.store.format.safe_key import checked_folder, checked_key

NAMES = [
    "",
    ".",
    "..",
    "...",
    "CON",
    "nul.txt",
    "a/b",
    "..\\..\\x",
    "C:\\x",
    "\x00",
    "zarr.json",
    "__x",
    "é文",
    "a b",
    "~",
]
EVIL = [
    "",
    ".",
    "..",
    "../x",
    "a/../b",
    "a/./b",
    "/etc/passwd",
    "a//b",
    "a/",
    "/",
    "a\\b",
    "C:x",
    "a\x00b",
    "a\nb",
    "a\n",
    "\x7f",
    "a b",
    "é",
    "a/.tmp-0",
    ".hidden",
    "~/x",
    "x" * 256,
    "/".join(["x" * 200] * 6),
    None,
    3,
    True,
    ["a"],
    {"a": "b"},
    b"a",
]


@pytest.mark.parametrize("text", EVIL)
def test_what_could_lead_out_of_a_folder_is_refused_and_the_document_named(text: object) -> None:
    with pytest.raises(StoreError, match=r"run\.json is damaged or was not written by gradsae-fast: the key is"):
        checked_key(text, "the key", "run.json")


@pytest.mark.parametrize(
    "text",
    ["c.0", "tokens/mask/zarr.json", "sites/model.layers.12/by_token/projection/logit-diff%3Aa%2F%42/c.0", "x" * 255],
)
def test_keys_that_writers_make_pass_as_they_are(text: str) -> None:
    assert checked_key(text, "the key", "run.json") == text


@given(st.text(max_size=40))
def test_any_text_that_passes_stays_below_its_folder(text: str) -> None:
    try:
        checked_key(text, "the key", "here")
    except StoreError:
        return
    root = Path("/store")
    assert root in (root / text).parents
    assert ".." not in (root / text).parts
    assert len((root / text).parts) == 2 + text.count("/") + 1


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_any_name_becomes_one_component_that_passes_and_reads_back(name: str) -> None:
    written = component(name)
    assert "/" not in written
    assert checked_key(written, "a name", "here") == written
    assert name_of(written) == name


@given(st.text(min_size=1, max_size=20))
def test_names_of_any_letters_are_safe_components(name: str) -> None:
    written = component(name)
    assert checked_key(written, "a name", "here") == written
    assert written == written.lower() or "%" in written
    assert name_of(written) == name


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 43, "X" * 86])
def test_a_name_that_no_file_system_takes_is_refused_with_its_length(name: str) -> None:
    with pytest.raises(StoreError, match="bytes as a folder name; expected 1 to 255: rename the site, objective or"):
        component(name)


@pytest.mark.parametrize(
    "folder",
    [
        "segments",
        "segments/",
        "segments/a/b",
        "dictionary/x",
        "x",
        "../segments/x",
        "segments/..",
        "/segments/x",
        None,
        1,
    ],
)
def test_a_record_can_name_a_folder_of_its_own_kind_only(folder: object) -> None:
    with pytest.raises(StoreError, match=r"commits/000000\.json is damaged or was not written by gradsae-fast"):
        checked_folder(folder, "segments", "commits/000000.json")
    assert checked_folder("segments/000012-1f0c", "segments", "x") == "segments/000012-1f0c"
