"""JSON sidecars of a run (the plan, what the gate found): written atomically, never compared."""

from contextlib import suppress
from typing import Any

from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.layout import component
from gradsae_fast.store.places.durable import create_exclusive, document_bytes, make_folder, read_document, replace_file
from gradsae_fast.store.places.place import Place

FACTS = "facts"


def write_facts(store: Place, name: str, facts: dict[str, Any]) -> None:
    """Write or replace `facts/<name>.json`."""
    make_folder(store / FACTS)
    replace_file(facts_path(store, name), document_bytes({"facts": facts}))


def keep_facts(store: Place, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `facts/<name>.json` unless there is one, of whichever writer; return what is there then.

    Raises:
        StoreError: the file is damaged.
    """
    found = read_facts(store, name)
    if found is None:
        make_folder(store / FACTS)
        with suppress(FileExistsError):
            create_exclusive(facts_path(store, name), document_bytes({"facts": facts}))
        found = read_facts(store, name)
    assert found is not None, "sidecars are never deleted"
    return found


def read_facts(store: Place, name: str) -> dict[str, Any] | None:
    """Return what was written under `name`, or None.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        document = read_document(facts_path(store, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Fields(document, facts_path(store, name)).mapping("facts")


def facts_path(store: Place, name: str) -> Place:
    """Return where the facts of this name lie."""
    return store / FACTS / f"{component(name)}.json"
