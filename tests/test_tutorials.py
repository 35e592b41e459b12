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
    text = "".join(
        out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in shown
    )
    if path.stem == "flax_critic":
        assert "(32, 2)" in text
        assert "depends on agent 0's own action" in text
    if path.stem == "other_programs":
        assert "- EPyMARL: steps are t_env" in text
        assert "- marl-eval: steps are step_count" in text
        assert (tmp_path / "compared" / "summary.json").exists()
    if path.stem == "own_environment":
        forms = "".join(out.get("data", {}).get("text/html", "") for out in shown)
        assert "data:image/gif;base64," in forms
        assert "rendezvous" in forms or "object:Rendezvous" in forms
        assert (tmp_path / "policy.npz").exists()
        assert "extended from 2,000 to 3,000 steps" in text
