"""`advflyp data fetch` and `advflyp data sets`, with the downloads replaced."""

import shutil
from pathlib import Path
from socket import gaierror
from urllib.error import URLError

import pytest
import torchvision
from rich.console import Console

from advflyp.cli.main import main
from advflyp.data.sets.fetch import fetch, overview
from advflyp.data.sets.labelled import load_set
from hubserver import NOWHERE, Hub, use_hub
from layouts import BUILDERS, webdataset


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVFLYP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def downloads(monkeypatch: pytest.MonkeyPatch, name: str, builder: str) -> list[str]:
    """Let the torchvision class fill its folder; returns the folders it was called for."""
    calls: list[str] = []

    def class_(folder: str, *, download: bool) -> None:
        assert download
        calls.append(folder)
        BUILDERS[builder](Path(folder))
        (Path(folder) / "archive.zip").write_text("left over")

    monkeypatch.setattr(torchvision.datasets, name, class_)
    return calls


def test_from_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = downloads(monkeypatch, "EuroSAT", "eurosat")
    said: list[str] = []
    fetch(["EuroSAT"], say=said.append)
    assert "licence: MIT" in said[0] and "100 images, 10 classes (published: 27,000 images)" in said[1]
    assert len(load_set("eurosat@test")) == 20
    assert [path.name for path in root.iterdir()] == ["eurosat"], "no archives, no staging folder"
    fetch(["eurosat", "eurosat@train"], say=said.append)
    assert len(calls) == 1, "what is there is left alone"


def test_half_a_download_is_no_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(folder: str, *, download: bool) -> None:
        BUILDERS["dtd"](Path(folder))
        raise RuntimeError("the line\nis dead")

    monkeypatch.setattr(torchvision.datasets, "DTD", breaks)
    with pytest.raises(
        ValueError, match=r"dtd could not be downloaded \(.*the line is dead.*\): see https://www"
    ):
        fetch(["dtd"], say=lambda _: None)
    assert not list(root.iterdir())


def test_from_the_hub(root: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, hub.url, tmp_path / "cache")
    for name in ("wds_cars", "wds_vtab-eurosat", "wds_imagenet1k", "wds_vtab-dtd"):
        webdataset(tmp_path / name, (3, 2), ["a", "b"], "test")
        shutil.copytree(tmp_path / name / "test", tmp_path / name / "train")
        hub.add(f"datasets/clip-benchmark/{name}", tmp_path / name)
    fetch(["stanford_cars", "eurosat@vtab", "imagenet"], say=lambda _: None)
    fetch(["dtd"], wds=True, say=lambda _: None)
    assert load_set("stanford_cars").split == "test" and load_set("imagenet").split == "val"
    tars = [name for name in hub.served if name.endswith(".tar")]
    assert len(tars) == 8 and all("/test/" in name for name in tars), "only the split that is asked for"
    # An interrupted download must not pass for the set, so the file that says it is whole comes last.
    cars = [name for name in hub.served if "wds_cars/test/" in name]
    assert cars[-1].endswith("/nshards.txt") and cars.count(cars[-1]) == 1 and len(cars) > 2
    hub.down = True
    with pytest.raises(ValueError, match="the hub answered 503 for the dataset clip-benchmark/wds_cars"):
        fetch(["stanford_cars@train"], say=lambda _: None)


def test_without_a_network(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"the hub \(.*\) cannot be reached .* clip-benchmark/wds_cars"):
        fetch(["stanford_cars"], say=lambda _: None)

    def refused(*_: object, **__: object) -> None:
        raise URLError(gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(torchvision.datasets, "DTD", refused)
    with pytest.raises(ValueError, match=r"downloaded: the server of https://www.robots.* cannot be reached"):
        fetch(["dtd"], say=lambda _: None)


def test_from_an_archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def archive(url: str, folder: str, md5: str) -> None:
        assert url.endswith("tiny-imagenet-200.zip") and len(md5) == 32
        BUILDERS["tiny-imagenet"](Path(folder))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", archive)
    fetch(["tiny-imagenet@heldout"], say=lambda _: None)
    assert len(load_set("tiny-imagenet@train")) == 1800


def test_what_cannot_be_fetched(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        ValueError, match="sun397@test cannot be downloaded: get it from https://vision.prince"
    ):
        fetch(["sun397@test"])
    for arguments, message in (
        (["fetch"], "say what to fetch"),
        (["fetch", "eurosta"], "there is no set 'eurosta'; did you mean 'eurosat'?"),
        (["fetch", "mini/openmoji"], "tools.mini_corpus.build --sets openmoji`"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(root))
        with pytest.raises(SystemExit) as stopped:
            main(["data", *arguments])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    main(["data", "fetch", "mini/food"])
    assert "mini/food: 88 images, nothing to fetch" in capsys.readouterr().out


def test_overview(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BUILDERS["eurosat"](root)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(overview())
    lines = capture.get().splitlines()
    (eurosat,) = (line for line in lines if "│ eurosat " in line)
    assert [cell.strip() for cell in eurosat.split("│")[1:-1]] == [
        "eurosat", "27,000", "10", "all, test, train, vtab", "all, test, train",
    ]  # fmt: skip
    (dtd,) = (line for line in lines if "│ dtd " in line)
    assert dtd.split("│")[-2].strip() == "no"
    shutil.rmtree(root)
    main(["data", "sets"])
    assert "mini/food" in capsys.readouterr().out
