"""What an evaluation does besides the model's work grows with the images, not with their square.

Counted, not timed: elements that bookkeeping goes through.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advflyp import files
from advflyp.attack.base import Attack, Stage
from advflyp.attack.threat import Threat
from advflyp.data.sets.images import Images, balanced
from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation import evaluator as module
from advflyp.evaluation import journal, results
from advflyp.evaluation.evaluator import Evaluator
from advflyp.evaluation.journal import Journal
from advflyp.model.clip import CLIP

GREY = Image.new("RGB", (8, 8), (100, 120, 140))


class Same(Images):
    """One image, as often as there are labels."""

    def image(self, index: int) -> Image.Image:
        return GREY

    def key(self, index: int) -> str:
        return f"{index:06d}.png"


class Idle(Attack):
    """Two stages that change nothing, so that what is counted is not theirs."""

    def stages(self, threat: Threat) -> list[Stage]:
        return [lambda victim, images, labels, threat, streams: images] * 2


class Elements(TorchDispatchMode):
    """How many integers and truth values, pixels aside, operations take and give: what the books are kept with."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        # A view costs nothing, however large it is.
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, found)) if isinstance(leaf, Tensor)]
            # An index that is put into a large tensor goes through as many elements as it has itself.
            counted = [t.numel() for t in tensors if not t.is_floating_point() and t.dim() <= 2]
            self.count += min(counted, default=0) if "index" in func.name() else sum(counted)
        return found


def counting(of: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        made = of(*arguments)
        counts.append(len(made))
        return made

    return make


@pytest.fixture
def grey_model(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> CLIP:
    """Embeds pictures of 8×8 by a product with a matrix."""
    torch.manual_seed(0)
    pixels, weights = torch.rand(3, 8, 8), torch.randn(192, 24)
    monkeypatch.setattr(tiny, "preprocess", lambda picture: pixels)
    monkeypatch.setattr(
        tiny, "encode_image", lambda x: torch.nn.functional.normalize(x.flatten(1) @ weights, dim=-1)
    )
    return tiny


def bookkeeping(model: CLIP, n: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Elements that tensors and Python's collections hold in an attacked run of n images; bytes of the journal."""
    classes = ["cat", "dog", "house"]
    labelled = LabelledSet(
        Same(torch.zeros(n, dtype=torch.int64)), classes, "a {}", name="mini/grey", split="test"
    )
    one = Evaluator(model, labelled, batch_size=8)
    labelled.labels[:] = one.logits_fp32(model.preprocess(GREY)[None]).argmax(1)  # all of them right
    written: list[int] = []
    held: list[int] = []
    real = journal.np.savez

    def savez(file: Any, **arrays: Any) -> None:
        real(file, **arrays)
        written.append(file.tell())

    with monkeypatch.context() as patch, Elements() as elements:
        patch.setattr(journal.np, "savez", savez)
        for kind in (set, list, dict, sorted):
            patch.setattr(module, kind.__name__, counting(kind, held), raising=False)
        outcome = one.run(Idle(), Threat(eps=1 / 255), journal=Journal(folder / str(n)))
    assert len(outcome.label) == n and outcome.correct.all()
    assert len(written) > n // 16
    return elements.count + sum(held), sum(written)


def test_a_run_of_four_times_the_images_does_four_times_the_work(
    grey_model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (bookkeeping(grey_model, n, tmp_path, monkeypatch) for n in (256, 1024))
    for small, large in zip(few, many, strict=True):
        assert large < 4.4 * small


@dataclass
class Named(results.Measurement):
    """A cell that has nothing but its model's name."""

    model: str

    def key(self) -> tuple[str, ...]:
        return ()


def test_a_line_is_appended_without_reading_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115, closed by who opens it
        real = file.read
        file.read = lambda size=-1: (data := real(size), read.append(len(data)))[0]  # type: ignore[method-assign]
        return file

    path = tmp_path / "r.jsonl"
    path.write_text('{"model": "' + "x" * 300_000 + '"}\n' + '{"model": "' + "y" * 200_000)
    monkeypatch.setattr(files, "open", counted, raising=False)
    results.append_cell(path, Named("b"))
    found = results.read_store(path, lambda record: Named(**record))
    assert [len(cell.model) for cell in found] == [300_000, 1]
    read.clear()
    results.append_cell(path, Named("c"))
    assert 0 < sum(read) <= results.BLOCK


class Label(int):
    """A number that counts how often it is looked up."""

    asked = 0

    def __hash__(self) -> int:
        Label.asked += 1
        return super().__hash__()


def test_a_subset_of_a_long_tail_asks_for_every_label_a_few_times() -> None:
    """One class of 1,500 pictures, and 1,500 of one: rounds over all classes would be two million."""
    labels = [Label(0)] * 1500 + [Label(number) for number in range(1, 1501)]
    Label.asked = 0
    assert len(balanced(labels, 2900, seed=0)) == 2900
    assert Label.asked < 20 * len(labels)
