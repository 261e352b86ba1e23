"""The worked notebook runs from its first cell to its last on scores like the demo's, and shows what it promises."""

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import gradsae_fast

NOTEBOOK = Path(gradsae_fast.__file__).parent / "howto" / "audit.ipynb"


@pytest.fixture
def executed(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook with its outputs, run beside a folder `gradsae-demo`."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(workshop / "ipython"))
    shutil.copytree(workshop / "speeches.gradsae", workshop / "gradsae-demo" / "scores.gradsae")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(workshop)}}
    )
    return client.execute()


def test_the_notebook_runs_and_shows_tables_tokens_and_a_document(executed: Any, workshop: Path) -> None:
    pages = [
        output["data"]["text/html"]
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    assert len(pages) == 6
    assert "passed 6 checks" in pages[0]
    for page, part in zip(pages[1:], ("absolute", "effect_size", "<mark", "latent ", "all latents"), strict=True):
        assert part in page
        assert "<script" not in page
    assert (workshop / "parties.parquet").stat().st_size > 0
    assert not [
        output for cell in executed.cells for output in cell.get("outputs", ()) if output.output_type == "error"
    ]


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000
