"""Every notebook runs from top to bottom."""

import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(ROOT)}}
    )
    # As a reader runs it: optimised, for it trains for longer than it compiles.
    client.execute(env={**os.environ, "XLA_FLAGS": ""})
    kinds = {
        output.output_type
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    }
    assert "display_data" in kinds and "error" not in kinds
    assert not any(
        cell.get("outputs")
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ), "stored without outputs"
