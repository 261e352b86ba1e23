"""JSON sidecars of a run (the plan, what the gate found): written atomically, never compared."""

from pathlib import Path
from typing import Any

from gradsae_fast.store.durable import document_bytes, make_folder, read_document, replace_file
from gradsae_fast.store.layout import component

FACTS = "facts"


def write_facts(store: Path, name: str, facts: dict[str, Any]) -> None:
    """Write or replace `facts/<name>.json`."""
    make_folder(store / FACTS)
    replace_file(facts_path(store, name), document_bytes({"facts": facts}))


def read_facts(store: Path, name: str) -> dict[str, Any] | None:
    """Return what was written under `name`, or None.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        document = read_document(facts_path(store, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    facts: dict[str, Any] = document["facts"]
    return facts


def facts_path(store: Path, name: str) -> Path:
    """Return where the facts of this name lie."""
    return store / FACTS / f"{component(name)}.json"
