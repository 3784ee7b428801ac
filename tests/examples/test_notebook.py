"""The notebook, from its first cell to its last, in a kernel of its own."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/toybox.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # megabytes of pictures
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7
    (told,) = (out["text"] for out in outputs if "without motion" in out.get("text", ""))
    moving, still = (float(part.split(":")[1]) for part in told.split(";"))
    assert still < 0.5 * moving
    assert (tmp_path / "toybox.mp4").stat().st_size > 1000
