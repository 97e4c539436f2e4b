"""The notebook runs from a fresh kernel, and shows images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "inside.ipynb"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_with_its_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))

    # JPEG images, a megabyte in all, and no path or warning of the machine that made them.
    outputs = [output for cell in cells for output in cell.outputs]
    images = [output.data["image/jpeg"] for output in outputs if "data" in output]
    assert len(images) == 7 and sum(map(len, images)) < 1e6
    assert all("image/png" not in output.get("data", {}) for output in outputs)
    texts = [output.text for output in outputs if output.output_type == "stream"]
    assert texts and not any("/" in text or "Warning" in text for text in texts)


def test_the_notebook_runs_and_shows_every_kind_of_image(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # The kernel of this environment, whatever the user has installed at home.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=120,
        resources={"metadata": {"path": str(ROOT / "docs")}},
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    shown = [
        output.data["image/png"]
        for cell in cells
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    sizes = [Image.open(io.BytesIO(base64.b64decode(x))).size for x in shown]
    # Detections, salience, tokens, proposals, sampling points, attribution, figures.
    assert len(sizes) == 7 and sizes[0] == (320, 320) and all(min(size) > 300 for size in sizes)
    text = "".join(
        output.text for cell in cells for output in cell.outputs if output.output_type == "stream"
    )
    assert "700 tokens refined, 60 queries, 3 decoder layers" in text
