"""The method that CONTRIBUTING.md shows is a method: it trains."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

from advflyp.method import METHODS
from advflyp.training.trainer import train

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def anchor(monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    module = types.ModuleType("advflyp_anchor")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(source, vars(module))
    monkeypatch.setitem(METHODS, "anchor", (module.Anchor, module.AnchorConfig))


@pytest.fixture
def anchor_recipe(recipe):
    text = re.sub(r"(feature|logit)_weight = .*\n", "", recipe.read_text(encoding="utf-8"))
    recipe.write_text(text.replace('"advflyp"', '"anchor"'), encoding="utf-8")
    return recipe


def test_the_shown_method_trains(anchor, anchor_recipe, tmp_path):
    result = train(anchor_recipe, {"method.weight": 2.0}, out=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (row,) = [r for r in map(json.loads, lines) if r["kind"] == "train"]
    assert result.steps == row["step"]
    assert row["loss"] == pytest.approx(row["loss/anchor"]) and row["loss"] > 0


def test_its_keys_are_checked(anchor, anchor_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"unknown key 'method\.wieght'; did you mean 'method\.weight'"):
        train(anchor_recipe, {"method.wieght": 2.0}, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"method\.weight must be above 0"):
        train(anchor_recipe, {"method.weight": 0}, out=tmp_path / "run")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(?:src/advflyp|tests)/[\w./]+`", TEXT))))
def test_the_files_it_names_exist(path):
    assert (Path(__file__).resolve().parent.parent / path.strip("`")).exists()
