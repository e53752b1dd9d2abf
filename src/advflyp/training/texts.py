"""The text embeddings that a method is promised, added to each batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.data.training import LabelledBatches
from advflyp.devices import to_device
from advflyp.distributed import Ranks
from advflyp.method.base import Method
from advflyp.model.clip import CLIP, TextCache
from advflyp.model.text_store import TextStore
from advflyp.model.zeroshot import ClassTexts
from advflyp.training.recipe import Recipe

EncodeText = Callable[[Sequence[str]], Tensor]


class CaptionTexts:
    """The captions of the pairs of all ranks.

    Attributes:
        encode: n captions → (n, d) unit-norm embeddings.
    """

    def __init__(self, encode: EncodeText, ranks: Ranks) -> None:
        self.encode, self.ranks = encode, ranks

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, text_embeddings=self.ranks.gather(self.encode(batch.captions)))


class LabelTexts:
    """The classes of labelled images, and the captions made of them.

    Captions drawn from many templates are encoded as they are; those of the first template are the classes' prompts.
    """

    def __init__(
        self,
        encode: EncodeText,
        ranks: Ranks,
        model: CLIP,
        pairs: LabelledBatches,
        method: Method,
        *,
        frozen: bool,
    ) -> None:
        self.encode, self.ranks, self.device = encode, ranks, model.device
        self.classes = ClassTexts(model, pairs.classes, pairs.templates, frozen=frozen)
        self.draws_captions = pairs.draws_captions
        self.needs_classes = method.needs_classes or not pairs.draws_captions

    def __call__(self, batch: Batch) -> Batch:
        labels = to_device(batch.labels, self.device)
        found = self.classes(labels) if self.needs_classes else {}
        if self.draws_captions:
            found["text_embeddings"] = self.encode(batch.captions)
        found["text_embeddings"] = self.ranks.gather(found["text_embeddings"])
        return replace(batch, labels=labels, **found)


def open_texts(
    recipe: Recipe, model: CLIP, method: Method, pairs: object, ranks: Ranks
) -> Callable[[Batch], Batch]:
    """What adds the text embeddings for this method; those of a frozen tower are kept."""
    if method.trains_on == "images":
        return lambda batch: batch
    frozen = recipe.train.unfreeze not in ("vision+text", "all")
    encode: EncodeText = model.encode_text
    # A cached embedding's last bits depend on which texts shared its batch, so on where a run resumed.
    if frozen and not recipe.train.deterministic:
        cache = recipe.data.text_cache
        encode = TextCache(model) if cache is None else TextStore(model, cache)
    if method.trains_on == "pairs":
        return CaptionTexts(encode, ranks)
    assert isinstance(pairs, LabelledBatches)
    return LabelTexts(encode, ranks, model, pairs, method, frozen=frozen)
