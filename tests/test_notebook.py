"""The notebook runs, cell by cell, and says what its text says."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks/mini.ipynb"


def test_its_outputs_are_there_and_tell_nothing_of_a_machine() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    text = NOTEBOOK.read_text()
    assert not re.search("/(home|root|tmp|Users)/|Traceback|Warning", text)
    assert NOTEBOOK.stat().st_size < 500_000


@pytest.mark.slow
def test_it_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    scope: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    printed = capsys.readouterr().out
    shares = {
        tuple(line.split()[:3]): float(line.split()[3]) for line in printed.splitlines() if "pgd10" in line
    }
    for name in ("mini/food", "mini/flags", "mini/animals-3d"):
        assert shares["robust", name, "pgd10"] > shares["original", name, "pgd10"]
