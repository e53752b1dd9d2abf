import pytest

from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation import suite
from advflyp.model.clip import CLIP
from helpers import labelled_by


@pytest.fixture
def noise_set(tiny: CLIP) -> LabelledSet:
    return labelled_by(tiny, 20)


@pytest.fixture
def known_sets(noise_set: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> LabelledSet:
    monkeypatch.setattr(suite, "load_set", lambda name: noise_set)
    monkeypatch.setattr(suite, "set_names", lambda names: ["noise"])
    return noise_set
