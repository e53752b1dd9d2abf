"""Names that README and docs showed before the tree changed."""

from importlib import import_module

import pytest

import advflyp

MOVED = {
    "advflyp.data.labelled": ("advflyp.data.sets.labelled", ["LabelledSet", "load_set"]),
    "advflyp.data.images": ("advflyp.data.pairs.images", ["on_white"]),
    "advflyp.data.pictures": ("advflyp.data.sets.images", ["Files"]),
    "advflyp.model.hub": ("advflyp.model.load", ["ModelConfig", "load_model", "start_from"]),
    "advflyp.model.export": ("advflyp.model.interop.export", ["export_model"]),
    "advflyp.training.trainer": ("advflyp.training.loop", ["train"]),
    "advflyp.report.paper": ("advflyp.paper.page", ["paper_report"]),
}


@pytest.mark.parametrize("old", MOVED, ids=lambda old: old.removeprefix("advflyp."))
def test_a_documented_name_still_works_and_says_where_it_is_now(old: str) -> None:
    new, names = MOVED[old]
    module = import_module(old)
    for name in names:
        with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now {new}.{name}"):
            found = getattr(module, name)
        assert found is getattr(import_module(new), name)
    with pytest.raises(AttributeError):
        module.nothing  # noqa: B018


def test_the_images_of_a_set_by_their_former_name() -> None:
    labelled = advflyp.load_set("mini/flags")
    with pytest.warns(DeprecationWarning, match="now LabelledSet.dataset"):
        assert labelled.pictures is labelled.dataset
