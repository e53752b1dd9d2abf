"""Objects given in place of what a recipe names: a model, training data, a validation set."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from advflyp.config import read_toml
from advflyp.data.lineage import OBJECT
from advflyp.data.sets.images import dataset_name
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.model.clip import CLIP
from advflyp.model.folder import config_sha256, weights_sha256
from advflyp.model.load import start_from
from advflyp.training.folder import RunFolder
from advflyp.training.recipe import Recipe

# Key of the recipe → the argument of `train` that replaces it.
REPLACED = {("model", "name"): "model", ("data", "train"): "pairs", ("validate", "set"): "validation_set"}
# Number of characters of a hash that tell models apart.
HEX = 12


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects that `train` is given in place of what its recipe names; None to use the recipe's name."""

    model: CLIP | None = None
    pairs: Any = None
    validation_set: LabelledSet | None = None

    def recorded(self, recipe: Recipe) -> Recipe:
        """The recipe, with names that identify the given objects, so that a resumed run can be compared with it."""
        if self.model is not None:
            if recipe.model.text is not None:
                raise ValueError("model.text cannot be combined with a model that is given; leave it out")
            weights, config = weights_sha256(self.model)[:HEX], config_sha256(self.model)[:HEX]
            name = f"{OBJECT}{self.model.name}@{weights}-{config}"
            recipe = replace(recipe, model=replace(recipe.model, name=name))
        if self.pairs is not None:
            recipe = replace(recipe, data=replace(recipe.data, train=f"{OBJECT}{_described(self.pairs)}"))
        if self.validation_set is not None:
            name = f"{OBJECT}{_described(self.validation_set)}"
            recipe = replace(recipe, validate=replace(recipe.validate, set=name))
        return recipe

    def check(self, recipe: Recipe, folder: RunFolder, resume: bool) -> None:
        """Refuse the recipe of a run that was given objects if they are not given again.

        Raises:
            ValueError: The recipe, or the one that the run in `folder` was started with, names an object that is not
                given.
        """
        trees = [recipe.tree()]
        if resume and folder.recipe.is_file():
            trees.append(read_toml(folder.recipe))
        for (table, key), argument in REPLACED.items():
            for tree in trees:
                name = tree.get(table, {}).get(key)
                if getattr(self, argument) is None and isinstance(name, str) and name.startswith(OBJECT):
                    raise ValueError(
                        f"{table}.{key} = '{name}' stands for a Python object: pass the same object to "
                        f"advflyp.train(…, {argument}=…)"
                    )

    def open_model(self, recipe: Recipe, device: torch.device) -> CLIP:
        """The model to start from; a copy of the one that was given, which stays as it is."""
        if self.model is None:
            return start_from(recipe.model, device=device)
        self.model.check_weights()
        return deepcopy(self.model).to(device).eval()

    def open_validation_set(self, recipe: Recipe) -> LabelledSet | None:
        """The set that decides the best weights; None without one."""
        if self.validation_set is not None:
            return self.validation_set
        return None if recipe.validate.set is None else load_set(recipe.validate.set)


# Everything as the recipe names it.
NAMES = Objects()


def _described(data: Any) -> str:
    """A name, and how many items there are."""
    name = data.name if isinstance(data, LabelledSet) else dataset_name(data)
    return f"{name}:{len(data)}" if hasattr(data, "__len__") else name
