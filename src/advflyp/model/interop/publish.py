"""`advflyp publish`: upload weights, a model card and the measured robustness to a repository on the hub."""

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # type: ignore[attr-defined]  # its client's, whichever that is
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from advflyp.documents import read_json
from advflyp.errors import RunError, first_line
from advflyp.evaluation.results import Cell, read_cells
from advflyp.files import file_sha256
from advflyp.model.build import CONFIG_FILE
from advflyp.model.clip import CLIP
from advflyp.model.folder import BEST, CARD_FILE, config_sha256, read_card, weights_sha256
from advflyp.model.interop.export import ONNX_FILE, PREPROCESSING_FILE, has_vocabulary_file, store_tokenizer
from advflyp.model.interop.licences import find_licence
from advflyp.model.load import load_model
from advflyp.model.repository import HF_CONFIG_FILE
from advflyp.model.tokenizers import TOKENIZER_FILES, has_tokenizer
from advflyp.report.pages.model_card import known_licence, model_card, scrubbed
from advflyp.wording import counted

CARD = "README.md"
# The only files of a folder that are ever uploaded.
PUBLISHED = (
    CONFIG_FILE,
    "open_clip_model.safetensors",
    HF_CONFIG_FILE,
    "model*.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
    "pr*processor_config.json",
    *TOKENIZER_FILES,
    ONNX_FILE,
    PREPROCESSING_FILE,
)
# Those in which other programs note places of this machine, and under which keys.
CONFIGURATIONS = (CONFIG_FILE, HF_CONFIG_FILE, "*_config.json")
PLACES = (
    "_name_or_path",
    "name_or_path",
    "hf_tokenizer_name",
    "hf_model_name",
    "tokenizer_file",
    "vocab_file",
)
_CHANGED = "{} was replaced while it was prepared for publication, so nothing was sent; run the command again"
# Files that the hub itself adds.
HUBS_OWN = (".gitattributes", CARD)


@dataclass(frozen=True)
class Publication:
    """What goes to the hub.

    Attributes:
        files: {name in the repository: path here}.
        sums: The SHA-256 of each of `files`, when the card was written.
        written: {name in the repository: its text}, generated here: the card and what goes with it.
        licence: Identifier from the hub's list; None if it is not known.
    """

    repo: str
    files: dict[str, Path]
    sums: dict[str, str]
    written: dict[str, str]
    cells: list[Cell]
    licence: str | None

    def listing(self) -> list[tuple[str, int, str]]:
        """Name, bytes and SHA-256 of each file."""
        found = [(name, path.stat().st_size, self.sums[name]) for name, path in self.files.items()]
        for name, text in self.written.items():
            data = text.encode()
            found.append((name, len(data), hashlib.sha256(data).hexdigest()))
        return sorted(found)


def prepare(
    folder: Path, repo: str, *, results: Sequence[Path] = (), licence: str | None = None
) -> Publication:
    """Collect what to upload from `folder`: one of our runs, or a model in open_clip's, transformers' or ONNX format.

    Args:
        results: Files of `advflyp eval --out`; cells of other weights are ignored.
        licence: Identifier from the hub's list, such as "apache-2.0"; by default as the folder's card says.

    ValueError if there is no model, `repo` is not USER/NAME, the list has no such licence, the card records another
    one, the results are all of other weights, or the folder is replaced meanwhile.
    """
    licence = None if licence is None else find_licence(licence)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"--repo is USER/NAME, not '{repo}'")
    validate_repo_id(repo)
    folder = next((one for one in (folder / BEST, folder) if _kind(one)), folder)
    kind = _kind(folder)
    if kind is None:
        raise ValueError(f"{folder} holds no model: name a run folder, or what `advflyp export` wrote")
    files = {path.relative_to(folder).as_posix(): path for path in _allowed(folder)}
    before = _versions(files)
    card = scrubbed(read_card(folder))
    licence = known_licence(card, licence)
    model = load_model(folder, device="cpu") if kind != "onnx" else None
    sha256 = weights_sha256(model) if model is not None else card.get("weights_sha256", "")
    cells = _cells(results, sha256, config_sha256(model) if model is not None else None, folder)
    vision = any(name.startswith("vision/") for name in files)
    shown = [Cell(**scrubbed(vars(cell))) for cell in cells]
    written = {CARD: model_card(repo, kind, card, sha256, shown, licence, vision)}
    written |= _without_paths(files)
    if kind == "open_clip" and model is not None:
        written |= _loadable_by_name(model, folder, repo)
    if card:
        written[CARD_FILE] = json.dumps(card, indent=2) + "\n"
    if cells:
        lines = [json.dumps({**vars(cell), "model": repo}) for cell in shown]
        written["results.jsonl"] = "\n".join(lines) + "\n"
    files = {name: path for name, path in files.items() if name not in written}
    sums = {name: file_sha256(path) for name, path in files.items()}
    # A run that is still going replaces its best weights.
    after = _versions({name: folder / name for name in before})
    if changed := next((name for name in before if before[name] != after[name]), None):
        raise ValueError(_CHANGED.format(folder / changed))
    return Publication(repo, files, sums, written, cells, licence)


def _versions(files: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    """Which file each name stands for; another one after it was replaced or written to."""
    found = {name: path.stat() for name, path in files.items()}
    return {name: (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for name, one in found.items()}


def _without_paths(files: dict[str, Path]) -> dict[str, str]:
    """The configuration files that say where on this machine something was, without the folders."""
    written = {}
    for name, path in files.items():
        if any(fnmatch(path.name, pattern) for pattern in CONFIGURATIONS):
            # Bounded: whoever made the folder may be a stranger.
            tree = read_json(path)
            clean = _scrubbed_places(tree)
            if clean != tree:
                written[name] = json.dumps(clean, indent=2) + "\n"
    return written


def _scrubbed_places(tree: Any) -> Any:
    """The tree with the values of PLACES scrubbed; other texts, such as tokens, only look like paths."""
    if isinstance(tree, list):
        return [_scrubbed_places(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: scrubbed(value) if key in PLACES else _scrubbed_places(value) for key, value in tree.items()}


def _loadable_by_name(model: CLIP, folder: Path, repo: str) -> dict[str, str]:
    """The files that let open_clip find the tokenizer in the repository: its configuration, and what `folder` lacks.

    On the hub, open_clip looks up a tokenizer other than its own by the name in the configuration.
    """
    if has_vocabulary_file(model):
        with TemporaryDirectory() as draft:
            config = store_tokenizer(model, Path(draft), repo)
            written = {path.name: path.read_text(encoding="utf-8") for path in Path(draft).iterdir()}
    else:
        config, written = deepcopy(model.config), {}
        text: dict[str, Any] = config["model_cfg"]["text_cfg"]
        if text.get("hf_tokenizer_name") and has_tokenizer(folder):
            text["hf_tokenizer_name"] = repo
    return {CONFIG_FILE: json.dumps(_scrubbed_places(config), indent=2) + "\n", **written}


def send(publication: Publication, *, public: bool = False) -> str:
    """Create the repository if there is none, and upload everything in one commit; returns the commit's URL.

    Args:
        public: Make a new repository public; an existing one stays as it is.

    ValueError if a file is not the one that was prepared, nobody is logged in, or the repository is not writable or
    holds files of another model; RunError if the hub fails or does not answer.
    """
    api, repo = HfApi(), publication.repo
    sent = {**publication.files, **{name: text.encode() for name, text in publication.written.items()}}
    operations = [CommitOperationAdd(name, content) for name, content in sent.items()]
    for one in operations:
        sha256 = one.upload_info.sha256.hex()
        if publication.sums.get(one.path_in_repo, sha256) != sha256:
            raise ValueError(_CHANGED.format(publication.files[one.path_in_repo]))
    try:
        api.whoami()
        api.create_repo(repo, private=not public, exist_ok=True)
        others = sorted(set(api.list_repo_files(repo)) - set(sent) - set(HUBS_OWN))
        if others:
            raise ValueError(
                f"{repo} holds {counted(len(others), 'file')} of another model, such as {others[0]}; name another "
                "repository, or remove them there"
            )
        found = api.create_commit(repo, operations, commit_message="Publish with advflyp")
    except LocalTokenNotFoundError:
        raise ValueError("you are not logged in to the hub: `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ValueError(
                f"no permission to write to {repo} (the hub answered {status}): `hf auth login`"
            ) from None
        raise RunError(
            f"the hub answered {status} for {repo}; nothing was published: {first_line(error)}"
        ) from None
    except (HTTPError, OSError) as error:
        raise RunError(f"the hub does not answer; nothing was published: {first_line(error)}") from None
    return str(found.commit_url)


def _kind(folder: Path) -> str | None:
    names = {CONFIG_FILE: "open_clip", HF_CONFIG_FILE: "transformers", ONNX_FILE: "onnx"}
    return next((kind for name, kind in names.items() if (folder / name).is_file()), None)


def _allowed(folder: Path) -> list[Path]:
    found = []
    for inside in (folder, folder / "vision"):
        for path in sorted(inside.iterdir()) if inside.is_dir() else []:
            if any(fnmatch(path.name, pattern) for pattern in PUBLISHED):
                if path.is_symlink() or inside.is_symlink():
                    raise ValueError(f"{path} is a link; only files of the folder itself are published")
                found.append(path)
    return found


def _cells(paths: Sequence[Path], sha256: str, config: str | None, folder: Path) -> list[Cell]:
    for path in paths:
        if not path.is_file():
            raise ValueError(f"there are no results at {path}")
    every = [cell for path in paths for cell in read_cells(path)]
    # Older results do not record the configuration.
    own = [
        cell
        for cell in every
        if cell.checkpoint_sha256 == sha256 and (config is None or cell.config_sha256 in ("", config))
    ]
    if every and not own:
        others = ", ".join(sorted({cell.model for cell in every})[:3])
        raise ValueError(
            f"the results are of another model than the one in {folder} ({others}): measure it with "
            f"`advflyp eval {folder} --out …`"
        )
    return list({cell.key(): cell for cell in own}.values())
