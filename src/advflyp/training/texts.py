"""Add the text embeddings that a method needs to each batch."""

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

EncodeText = Callable[[Sequence[str], Tensor | None], Tensor]


def open_texts(
    recipe: Recipe, model: CLIP, method: Method, pairs: object, ranks: Ranks
) -> Callable[[Batch], Batch]:
    """A function that adds the text embeddings of all ranks to a batch; those of a frozen tower are cached."""
    if method.trains_on == "images":
        return lambda batch: batch
    frozen = not recipe.train.trains_texts
    encode: EncodeText = model.encode_text
    # A cached embedding's last bits depend on which texts shared its batch, so on where a run resumed.
    if frozen and not recipe.train.deterministic:
        cache = recipe.data.text_cache
        encode = TextCache(model) if cache is None else TextStore(model, cache)
    if method.trains_on == "pairs":
        return lambda batch: replace(
            batch, text_embeddings=ranks.gather(encode(batch.captions, batch.tokens))
        )
    assert isinstance(pairs, LabelledBatches)
    of_classes = ClassTexts(model, pairs.classes, pairs.templates, frozen=frozen)
    # Captions of a single template are the classes' prompts, which have been encoded already.
    draws_captions = len(pairs.caption_templates) > 1
    needs_classes = method.needs_classes or not draws_captions

    def add(batch: Batch) -> Batch:
        labels = to_device(batch.labels, model.device)
        found = of_classes(labels) if needs_classes else {}
        if draws_captions:
            found["text_embeddings"] = encode(batch.captions, None)
        found["text_embeddings"] = ranks.gather(found["text_embeddings"])
        return replace(batch, labels=labels, **found)

    return add
