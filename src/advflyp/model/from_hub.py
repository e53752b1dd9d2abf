"""Models on the Hugging Face hub: which files of a repository are fetched.

    hf-hub:OWNER/NAME               in open_clip's format, or all files that transformers saves
    hf-hub:OWNER/NAME@MODEL         transformers' weights and config.json; MODEL supplies what they lack
    hf-hub:OWNER/NAME/FILE@MODEL    a weights file that `checkpoints.py` can read

Configurations are fetched and checked before weights, so that no weights are downloaded in vain.
"""

from pathlib import Path

from advflyp.config import nearest
from advflyp.model.build import CONFIG_FILE, check_alone, open_clip_weights, read_open_clip_config
from advflyp.model.interop.checkpoints import SUFFIXES, first_few
from advflyp.model.interop.hf_folder import check_complete, hf_weights, read_hf_config
from advflyp.model.repository import HF_CONFIG_FILE, Address, Repository

# Prefixes of repositories that hold robust image classifiers, which have no text tower.
CLASSIFIERS = ("UCSC-VLAA/AdvXL-",)
# Configurations and vocabularies.
SMALL_FILES = (".json", ".txt", ".model", ".txt.gz")


def refuse_classifiers(repository: str) -> None:
    """Refuse repositories that are known to hold no CLIP, before anything is downloaded.

    Raises:
        ValueError: If `repository` is one of them.
    """
    if repository.startswith(CLASSIFIERS):
        raise ValueError(
            f"{repository} holds an image classifier with fixed classes, not a CLIP: it has no text tower, so it "
            "cannot be measured zero-shot; nothing was downloaded"
        )


def fetch_model(repository: Repository, address: Address, name: str, *, alone: bool = False) -> Path:
    """Fetch a model's folder, or a single weights file.

    Args:
        repository: Where it is.
        address: The address to fetch, read by `read_address`.
        name: What the user called it.
        alone: Refuse a configuration that would fetch files from other repositories.

    Returns:
        The folder or the file.

    Raises:
        ValueError: If the repository holds no such model, or it cannot be fetched.
    """
    if address.file is not None:
        return _fetch_file(repository, address.file, address.base)
    files = repository.files
    if CONFIG_FILE not in files and HF_CONFIG_FILE not in files:
        raise ValueError(
            f"it holds no model that can be loaded: neither {CONFIG_FILE} (open_clip's) nor {HF_CONFIG_FILE} "
            f"(transformers'){_single_files(repository)}"
        )
    small = [file for file in files if file.endswith(SMALL_FILES)]
    folder = repository.fetch(small)
    if CONFIG_FILE not in files:
        read_hf_config(folder)
        weights = hf_weights(folder, files)
        check_complete(folder, name, address.base)
        return repository.fetch([*small, *weights])
    if address.base is not None:
        raise ValueError(f"it is a whole model, as its {CONFIG_FILE} says; leave out @{address.base}")
    config = read_open_clip_config(folder)
    if alone:
        check_alone(config["model_cfg"]["text_cfg"], folder, repository.name)
    return repository.fetch([*small, open_clip_weights(files)])


def _fetch_file(repository: Repository, file: str, base: str | None) -> Path:
    if file not in repository.paths:
        hint = nearest(file, repository.paths) or _single_files(repository)
        raise ValueError(f"{repository.name} holds no file {file}{hint}")
    if base is None and CONFIG_FILE in repository.files:
        whole = Address(repository.name).name
        raise ValueError(f"name the repository alone, whose {CONFIG_FILE} says the rest: {whole}")
    return repository.fetch([file]) / file


def _single_files(repository: Repository) -> str:
    """The end of a message: how to name one of the weights files, if there are any."""
    found = sorted(path for path in repository.paths if path.endswith(SUFFIXES))
    if not found:
        return ", and no file of weights"
    return (
        f"; it holds {first_few(found)}: name the file and the model that "
        f"it was finetuned from, as in {Address(repository.name, found[0], 'ViT-L-14/openai').name}"
    )
