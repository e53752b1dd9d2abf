"""Models on the Hugging Face hub: whole repositories, and single files of weights in them.

    hf-hub:OWNER/NAME               in open_clip's format, or with all that transformers saves
    hf-hub:OWNER/NAME@MODEL         weights and config.json of transformers; MODEL gives what lacks
    hf-hub:OWNER/NAME/FILE@MODEL    a file of weights, as `checkpoints.py` reads it

Configurations come first and weights last: what cannot be loaded is not downloaded.
"""

from collections.abc import Mapping
from pathlib import Path

from advflyp.config import nearest
from advflyp.model.build import (
    CONFIG_FILE,
    HF_CONFIG_FILE,
    check_alone,
    open_clip_weights,
    read_open_clip_config,
)
from advflyp.model.clip import CLIP
from advflyp.model.interop.checkpoints import SUFFIXES, load_checkpoint_file
from advflyp.model.interop.hf_folder import check_complete, hf_weights, read_hf_config
from advflyp.model.load import describe, from_folder, from_transformers
from advflyp.model.repository import Address, Repository, open_repository
from advflyp.model.zoo import refuse_classifiers

# Configurations and vocabularies.
SMALL_FILES = (".json", ".txt", ".model", ".txt.gz")
# How many files a message names.
SHOWN = 3


def load_address(
    address: Address,
    name: str,
    *,
    revision: str | None = None,
    sha256: Mapping[str, str] | None = None,
    alone: bool = False,
) -> CLIP:
    """Load a model from the hub.

    Args:
        address: Where it is.
        name: What the user called it.
        revision: The commit; None for the newest.
        sha256: Hashes that its files must have.
        alone: Fetch nothing of other repositories that a configuration names.

    Raises:
        ValueError: If it cannot be fetched or loaded.
    """
    refuse_classifiers(address.repository)
    repository = open_repository(address.repository, revision, sha256)
    if address.file is not None:
        return _load_file(repository, address.file, address.base, name)
    files = repository.files
    if CONFIG_FILE not in files and HF_CONFIG_FILE not in files:
        raise ValueError(
            f"{name} holds no model that can be loaded: neither {CONFIG_FILE} (open_clip's) nor {HF_CONFIG_FILE} "
            f"(transformers'){_single_files(repository)}"
        )
    small = [file for file in files if file.endswith(SMALL_FILES)]
    folder = repository.fetch(small)
    try:
        if CONFIG_FILE not in files:
            weights = _check_transformers(repository, folder, name, address.base)
            return from_transformers(repository.fetch([*small, *weights]), name, address.base)
        if address.base is not None:
            raise ValueError(f"it is a whole model, as its {CONFIG_FILE} says; leave out @{address.base}")
        config = read_open_clip_config(folder)
        if alone:
            check_alone(config["model_cfg"]["text_cfg"], folder, repository.name)
        folder = repository.fetch([*small, open_clip_weights(files)])
        return from_folder(folder, name, None if alone else repository.name)
    except ValueError as error:
        partly = " (the hub did not answer; its cache may lack files)" if repository.cached else ""
        raise ValueError(f"{name}{partly}: {error}") from None


def _check_transformers(repository: Repository, folder: Path, name: str, base: str | None) -> list[str]:
    """The files of weights of a repository that transformers saved, once all else is known to be right."""
    read_hf_config(folder)
    weights = hf_weights(folder, repository.files)
    check_complete(folder, name, base)
    if base is not None:
        describe(base)
    return weights


def _load_file(repository: Repository, file: str, base: str | None, name: str) -> CLIP:
    shown = Address(repository.name, file).name
    if file not in repository.paths:
        hint = nearest(file, repository.paths) or _single_files(repository)
        raise ValueError(f"{repository.name} holds no file {file}{hint}")
    if base is not None:
        describe(base)
    elif CONFIG_FILE in repository.files:
        whole = Address(repository.name).name
        raise ValueError(f"{shown}: name the repository alone, whose {CONFIG_FILE} says the rest: {whole}")
    return load_checkpoint_file(repository.fetch([file]) / file, base, name, shown=shown)


def _single_files(repository: Repository) -> str:
    """How to name a file of weights, where there is one."""
    found = sorted(path for path in repository.paths if path.endswith(SUFFIXES))
    if not found:
        return ", and no file of weights"
    return (
        f"; it holds {', '.join(found[:SHOWN])}{', …' if len(found) > SHOWN else ''}: name the file and the model that "
        f"it was finetuned from, as in {Address(repository.name, found[0], 'ViT-L-14/openai').name}"
    )
