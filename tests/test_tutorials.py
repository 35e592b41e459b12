"""The notebooks of docs/tutorials are executed as they stand."""

from __future__ import annotations

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", os.environ.get("MPLBACKEND", "agg"))
    book = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells), "clear the outputs"
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [out for cell in book.cells for out in cell.get("outputs", ())]
    assert not [out for out in shown if out.output_type == "error"]
    if path.stem == "own_environment":
        forms = "".join(out.get("data", {}).get("text/html", "") for out in shown)
        assert "data:image/gif;base64," in forms
        assert "rendezvous" in forms or "object:Rendezvous" in forms
        assert (tmp_path / "policy.npz").exists()
        assert "extended from 2,000 to 3,000 steps" in "".join(
            out.text for out in shown if out.output_type == "stream"
        )
