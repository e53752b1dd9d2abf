"""A model that a run replaces while it is being published."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model
from advflyp.model.interop.publish import prepare, send
from advflyp.model.load import load_model


def test_a_model_that_is_replaced_meanwhile(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card and the results are never of other weights than those that are sent."""
    folder, later = tmp_path / "model", deepcopy(tiny)
    later.net.logit_scale.data += 1
    save_model(tiny, folder, {})
    found = prepare(folder, "me/x")
    save_model(later, folder, {})
    message = r"model/open_clip_\S+ was replaced while it was prepared"
    with pytest.raises(ValueError, match=message):
        send(found)

    def meanwhile(name: Path, **options: Any) -> CLIP:
        model = load_model(name, **options)
        save_model(tiny, folder, {})
        return model

    monkeypatch.setattr("advflyp.model.interop.publish.load_model", meanwhile)
    with pytest.raises(ValueError, match=message):
        prepare(folder, "me/x")
