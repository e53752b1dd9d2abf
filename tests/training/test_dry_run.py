from pathlib import Path

import pytest
from torch import Tensor

from advflyp.method.advflyp import AdvFLYP
from advflyp.training.dry_run import dry_run


def test_a_recipe_is_checked_and_nothing_written(recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    whole = dry_run(recipe)
    assert whole.steps > 0 and whole.weights > 0 and whole.activations > 0
    assert dry_run(recipe, {"train.micro_batch": "1"}).activations < whole.activations
    assert dry_run(recipe, {"optim.name": "sgd"}).weights < whole.weights
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="nothing-there"):
        dry_run(recipe, {"data.train": "nothing-there"})


def test_the_attack_is_tried(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of one's own may have its mistake there."""

    def broken(*_: object) -> Tensor:
        raise ValueError("a mistake of one's own")

    monkeypatch.setattr(AdvFLYP, "attack_loss_of", broken)
    with pytest.raises(ValueError, match="a mistake of one's own"):
        dry_run(recipe, {"method.feature_weight": "0", "method.logit_weight": "0"})


def test_captions_that_were_tokenized_with_the_batch(recipe: Path) -> None:
    """As many texts as images, also where another process has tokenized them all."""
    found = dry_run(
        recipe, {"data.loader": "process", "train.unfreeze": "all", "train.deterministic": "true"}
    )
    assert found.activations > 0
