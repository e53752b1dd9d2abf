"""Every loader is given files that would run code, were they read carelessly. None makes the canary's file."""

import hashlib
import io
import json
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from advflyp.data.pairs.manifest import read_manifest
from advflyp.data.pairs.samples import in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.sets.labelled import load_set
from advflyp.data.web.url_list import open_urls
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.results import read_cells
from advflyp.evaluation.retrieval import read_retrieval
from advflyp.lvlm.load import load_lvlm
from advflyp.lvlm.results import read_answer_cells
from advflyp.lvlm.tasks import TASKS, load_task
from advflyp.model.folder import read_card
from advflyp.model.interop.export import export_model
from advflyp.model.load import load_model
from advflyp.paper.study import read_study
from advflyp.report.figures.embedding import read_tsne
from advflyp.report.measure.runs import read_recipe_tree
from advflyp.training.checkpoint import load_last
from advflyp.training.recipe import read_recipe
from advflyp.training.runlog import read_metrics
from helpers import pairs, write_tar
from layouts import BUILDERS
from lvlm.conftest import save_llava, write_tasks

PICTURE = pairs(1)[0][0]
Loader = Callable[[Path, bytes], object]


class Program:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def torch_file(content: Any, *, legacy: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def numpy_file(content: Any, *, zipped: bool) -> bytes:
    stream = io.BytesIO()
    array = np.array([content], dtype=object)
    np.savez(stream, a=array) if zipped else np.save(stream, array)
    return stream.getvalue()


def payloads(mark: Path) -> Iterator[tuple[str, bytes]]:
    """The beginnings of files that libraries have run."""
    evil = Program(mark)
    for protocol in (0, 2, 4):
        yield f"pickle {protocol}", pickle.dumps({"state_dict": evil, "data": evil}, protocol=protocol)
    yield "torch", torch_file({"state_dict": {"a": torch.zeros(1)}, "recipe": evil}, legacy=False)
    yield "torch, legacy", torch_file({"model": evil}, legacy=True)
    yield "npy", numpy_file(evil, zipped=False)
    yield "npz", numpy_file(evil, zipped=True)
    run = f"open({str(mark)!r}, 'w').close()"
    yield "Python", f"{run}\n".encode()
    yield "YAML", f'a: !!python/object/apply:builtins.exec ["{run}"]\n'.encode()
    system = f"__import__('os').system('touch {mark}')"
    yield "JSON", json.dumps({"auto_map": system, "trust_remote_code": True}).encode()
    yield "template", f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}".encode()


def test_the_canary_sings(tmp_path: Path) -> None:
    found = dict(payloads(tmp_path / "mark"))
    for name in ("pickle 0", "pickle 4"):
        pickle.loads(found[name])
        (tmp_path / "mark").unlink()
    np.load(io.BytesIO(found["npy"]), allow_pickle=True)
    (tmp_path / "mark").unlink()
    torch.load(io.BytesIO(found["torch"]), weights_only=False)
    (tmp_path / "mark").unlink()
    exec(found["Python"])
    (tmp_path / "mark").unlink()


def file(name: str, read: Callable[[Path], object]) -> Loader:
    """A loader of one file."""

    def load(folder: Path, data: bytes) -> object:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return load


def of_folder(name: str, read: Callable[[Path], object]) -> Loader:
    """A loader of a folder in which `name` is the file."""
    depth = name.count("/") + 1
    return file(name, lambda path: read(path.parents[depth - 1]))


def checkpoint(folder: Path, data: bytes) -> object:
    digest = hashlib.sha256(data).hexdigest()[:16]
    return file(f"step-00000001-{digest}.pt", lambda path: load_last(path.parent))(folder, data)


def journal(folder: Path, data: bytes) -> object:
    record = struct.pack("<QI", len(data), zlib.crc32(data)) + data
    return file("x.journal", lambda path: Journal(path).read())(folder, record)


def cells(suffix: str) -> Loader:
    """A table whose cells hold the payload as text, as bytes, and in Python's notation."""

    def load(folder: Path, data: bytes) -> object:
        text = data.decode("latin-1")
        (folder / "refs.json").write_bytes(data)
        row = {"image": f"reference://a::file://{folder}/refs.json", "caption": text}
        rows = [row, {"image": text, "caption": repr(data)}, {"image": repr(data), "caption": f"[{text}]"}]
        path = folder / f"t{suffix}"
        if suffix == ".parquet":
            extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": data}
            field = pa.field("image", pa.binary(), metadata=extension)
            columns = {"image": [data, data, text.encode()], "caption": [one["caption"] for one in rows]}
            pq.write_table(pa.table(columns, pa.schema([field, ("caption", pa.string())])), path)
        else:
            path.write_text(json.dumps(rows))
        list(map(_used, in_order(open_source(str(path)))))
        return open_urls(path, url_column="image")

    return load


def _used(sample: Any) -> None:
    for read in (sample.captions, sample.image_bytes):
        try:
            read()
        except Exception as error:
            assert type(error).__name__ == "SkippedSample", error


def dataset(name: str) -> Loader:
    """A folder as `save_to_disk` of `datasets` writes it."""

    def load(folder: Path, data: bytes) -> object:
        datasets = pytest.importorskip("datasets")
        place = folder / "saved"
        datasets.Dataset.from_dict({"image": [PICTURE], "caption": ["x"]}).save_to_disk(str(place))
        (place / "saved.py").write_bytes(data)
        (place / name).write_bytes(data)
        return list(map(_used, in_order(open_source(str(place)))))

    return load


def labelled(name: str) -> Loader:
    def load(folder: Path, data: bytes) -> object:
        for label in "ab":
            (folder / "set" / label).mkdir(parents=True, exist_ok=True)
            (folder / "set" / label / "1.png").write_bytes(PICTURE)
        (folder / "set" / name).write_bytes(data)
        return load_set(str(folder / "set"))

    return load


def shard(suffix: str) -> Loader:
    """A tar with the payload as a member; beside it the names of the classes."""

    def load(folder: Path, data: bytes) -> object:
        (folder / "classnames.txt").write_text("a\nb\n")
        write_tar(folder / "0.tar", [("1.png", PICTURE), (f"1.{suffix}", data)])
        list(map(_used, in_order(open_source(str(folder / "0.tar")))))
        return load_set(f"wds:{folder}/0.tar")

    return load


FILES: dict[str, Loader] = {
    **{f"weights {suffix}": file(f"x{suffix}", lambda path: load_model(f"{path}@mini")) for suffix in
       (".pt", ".pth", ".pth.tar", ".bin", ".safetensors", ".ckpt", ".npz")},
    "weights alone": file("x.pt", lambda path: load_model(str(path))),
    "a checkpoint to resume from": checkpoint,
    "a journal": journal,
    "a recipe": file("x.toml", read_recipe),
    "a run's recipe": of_folder("recipe.toml", read_recipe_tree),
    "metrics": of_folder("metrics.jsonl", read_metrics),
    "results": file("r.jsonl", read_cells),
    "answers": file("r.jsonl", read_answer_cells),
    "results of a retrieval": file("r.jsonl", read_retrieval),
    "a card": of_folder("card.json", read_card),
    "a plan": of_folder("plan.json", read_study),
    "embeddings": file("embedding.json", read_tsne),
    "a manifest": of_folder("manifest.json", read_manifest),
    **{f"a table {suffix}": file(f"t{suffix}", lambda path: open_source(str(path))) for suffix in
       (".csv", ".tsv", ".json", ".jsonl", ".parquet")},
    **{f"addresses {suffix}": file(f"t{suffix}", open_urls) for suffix in (".csv", ".json", ".parquet")},
    **{f"cells {suffix}": cells(suffix) for suffix in (".json", ".parquet")},
    **{f"a dataset's {name}": dataset(name) for name in
       ("dataset_info.json", "state.json", "data-00000-of-00001.arrow")},
    **{f"a set's {name}": labelled(name) for name in
       ("classnames.txt", "classnames.json", "zeroshot_classification_templates.txt")},
    **{f"a member .{suffix}": shard(suffix) for suffix in ("cls", "txt", "json", "png")},
    "an image": file("x.png", lambda path: list(map(_used, in_order(open_source(str(path.parent)))))),
    "a shard": file("x.tar", lambda path: list(map(_used, in_order(open_source(str(path)))))),
}  # fmt: skip


def walk(load: Loader, folder: Path, mark: Path) -> None:
    """Every payload: a value or a refusal, and no canary."""
    for number, (name, data) in enumerate(payloads(mark)):
        place = folder / str(number)
        place.mkdir()
        with suppress(ValueError, OSError):
            load(place, data)
        assert not mark.exists(), f"{name} was run"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The canary's file. In the current folder are programs that a name in a file might lead to."""
    mark = tmp_path / "mark"
    here = tmp_path / "here"
    here.mkdir()
    (here / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return mark


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path, mark: Path) -> None:
    walk(FILES[name], tmp_path, mark)


OPEN_CLIP = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_config.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "merges.txt", "bpe.txt.gz", "card.json",
)  # fmt: skip


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_folders_of_open_clip(name: str, tmp_path: Path, mark: Path, tiny_folder: Path) -> None:
    def load(folder: Path, data: bytes) -> object:
        place = shutil.copytree(tiny_folder, folder / "model")
        config = json.loads((place / "open_clip_config.json").read_text())
        text = config["model_cfg"]["text_cfg"]
        if name.endswith(".bin"):
            (place / "open_clip_model.safetensors").unlink()
        elif name == "bpe.txt.gz":
            text["tokenizer_kwargs"] = {"bpe_path": name, "trust_remote_code": True}
        elif name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
            text |= {"hf_tokenizer_name": "evil", "tokenizer_kwargs": {"trust_remote_code": True}}
        (place / "open_clip_config.json").write_text(json.dumps(config))
        (place / name).write_bytes(data)
        read_card(place)
        return load_model(place)

    walk(load, tmp_path, mark)


TRANSFORMERS = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "config.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "merges.txt", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export_model(load_model(tiny_folder), "hf", folder)
    return folder


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_folders_of_transformers(name: str, tmp_path: Path, mark: Path, exported: Path) -> None:
    def load(folder: Path, data: bytes) -> object:
        place = shutil.copytree(exported, folder / "model")
        if "pytorch" in name or "index" in name:
            (place / "model.safetensors").unlink()
        if name == "processor_config.json":
            (place / "preprocessor_config.json").unlink(missing_ok=True)
        (place / "modeling_evil.py").write_bytes(data)
        (place / name).write_bytes(data)
        return load_model(place)

    walk(load, tmp_path, mark)


LLAVA = (
    "model.safetensors", "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "modeling_evil.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("name", LLAVA)
def test_folders_of_a_llava(name: str, tmp_path: Path, mark: Path, llava: Path) -> None:
    def load(folder: Path, data: bytes) -> object:
        place = shutil.copytree(llava, folder / "model")
        if name == "modeling_evil.py":
            config = json.loads((place / "config.json").read_text())
            auto = {"AutoConfig": "modeling_evil.Evil", "AutoModelForImageTextToText": "modeling_evil.Evil"}
            (place / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
        (place / name).write_bytes(data)
        model = load_lvlm(str(place), device="cpu")
        return model.template("what is there ?")

    walk(load, tmp_path, mark)


@pytest.mark.parametrize("task", TASKS)
def test_files_of_a_task(task: str, tmp_path: Path, mark: Path) -> None:
    """Every file of the data set, one by one, is replaced by something else."""
    files = [path.relative_to(tmp_path / "all") for path in write_tasks(tmp_path / "all").rglob("*.json*")]

    def load(folder: Path, data: bytes) -> object:
        for file in files:
            root = write_tasks(folder / file.name)
            (root / file).write_bytes(data)
            with suppress(ValueError):
                load_task(task, root)
        return None

    walk(load, tmp_path, mark)


NAMES = (
    "evil",
    "evil:make",
    "evil.py",
    "./evil.py",
    "local-dir:evil",
    "hf-hub:evil/evil",
    "hf-hub:./evil",
    "os:system",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_checkpoint(name: str, tmp_path: Path, mark: Path, tiny_folder: Path) -> None:
    """The recipe in a stranger's checkpoint says what model, method and data it is of."""
    recipe = (
        f'[model]\nname = "{name}"\ntext = "{name}"\n[method]\nname = "{name}"\n[data]\ntrain = "{name}"\n'
    )
    state = {"visual.proj": torch.zeros(1)}
    torch.save({"model": state, "recipe": recipe}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt"):
        load_model(str(tmp_path / "x.pt"))
    assert not mark.exists()


def test_names_in_results(tmp_path: Path, mark: Path) -> None:
    """A plan's sets and models are names of data, not of programs."""
    plan: dict[str, Any] = {
        "experiments": [
            {
                "id": "figure5",
                "title": "x",
                "rows": ["evil:make"],
                "sets": ["evil:make"],
                "attacks": [],
                "eps": [],
            }
        ]
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="evil:make"):
        read_study(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["test_batch", "batches.meta", "data_batch_1"])
def test_pickles_of_cifar(name: str, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(folder: Path, data: bytes) -> object:
        monkeypatch.setenv("ADVFLYP_DATA", str(folder))
        BUILDERS["cifar10"](folder)
        (folder / "cifar-10-batches-py" / name).write_bytes(data)
        return [load_set(f"cifar10@{split}") for split in ("test", "train")]

    walk(load, tmp_path, mark)
