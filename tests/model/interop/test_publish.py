"""Publishing to a hub on this machine; what the card says."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from advflyp.cli.main import main
from advflyp.data.sets.labelled import load_set
from advflyp.evaluation.results import append_cell, read_cells
from advflyp.evaluation.suite import evaluate
from advflyp.model.folder import save_model
from advflyp.model.interop.licences import find_licence
from advflyp.model.interop.publish import prepare
from advflyp.model.load import load_model
from advflyp.training.loop import train
from helpers import assert_equal64
from hubserver import NOWHERE, TOKEN, Hub, use_hub

pytest.importorskip("transformers")


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Path:
    """A short run, its results beside it."""
    train(recipe, {"train.max_steps": "2", "log.every": "1"}, out=tmp_path / "run")
    evaluate(
        tmp_path / "run",
        ["mini/food", "mini/flags"],
        ["clean", "pgd2"],
        [1 / 255],
        limit=20,
        out=tmp_path / "r.jsonl",
    )
    return tmp_path / "run"


@dataclass
class Done:
    """How the command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def publish(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Done]:
    """The command, with another hub than the real one."""

    def run(folder: Path, *arguments: str, hub: Hub | None = None, token: str = TOKEN) -> Done:
        use_hub(monkeypatch, hub.url if hub else NOWHERE, token=token)
        capsys.readouterr()
        status = 0
        try:
            main(["publish", str(folder), "--repo", "user/robust", *arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return Done(status, *capsys.readouterr())

    return run


LISTED = re.compile(r"^ *([\d,]+)  ([0-9a-f]{64})  (\S+)$", re.MULTILINE)


@pytest.mark.long
def test_what_arrives_is_what_was_shown(
    run: Path, hub: Hub, tmp_path: Path, publish: Callable[..., Done]
) -> None:
    (run / "best/secret.env").write_text("TOKEN=1")
    options = ("--results", str(run.parent / "r.jsonl"), "--licence", "mit")
    shown = publish(run, *options, hub=hub)
    assert shown.returncode == 0, shown.stderr
    assert "Nothing was sent" in shown.stdout and not hub.repos
    done = publish(run, *options, "--send", hub=hub)
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.url}/user/robust/commit/" in done.stdout and hub.commits == 1
    assert is_private(hub, "user/robust")
    arrived = hub.repos["user/robust"]
    listed = {
        name: (int(size.replace(",", "")), sha256) for size, sha256, name in LISTED.findall(shown.stdout)
    }
    assert listed == {
        name: (len(data), hashlib.sha256(data).hexdigest())
        for name, data in arrived.items()
        if name != ".gitattributes"
    }
    assert set(listed) == {
        "README.md", "card.json", "open_clip_config.json", "open_clip_model.safetensors", "results.jsonl",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert not [name for name, data in arrived.items() if str(tmp_path).encode() in data], (
        "no path of this machine"
    )

    folder = tmp_path / "received"
    folder.mkdir()
    for name, data in arrived.items():
        (folder / name).write_bytes(data)
    code = (
        "import open_clip, sys, torch; torch.manual_seed(0); "
        f"model = open_clip.create_model('local-dir:{folder}').double().eval(); "
        "x = torch.rand(2, 3, 32, 32, dtype=torch.float64); "
        "torch.save([x, model.encode_image(x, normalize=True).detach()], 'e.pt'); "
        "assert 'advflyp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    x, embeddings = torch.load(tmp_path / "e.pt")
    model = load_model(run).double()
    assert_equal64(model.encode_image(x * model.std + model.mean), embeddings)
    assert {cell.model for cell in read_cells(folder / "results.jsonl")} == {"user/robust"}

    again = publish(run, *options, "--send", hub=hub)
    assert again.returncode == 0 and hub.commits == 2, "the same repository again"
    arrived["other.bin"] = b"x"
    other = publish(run, *options, "--send", hub=hub)
    assert other.returncode == 2 and hub.commits == 2
    assert "user/robust holds 1 file of another model, such as other.bin" in other.stderr


# What a reader of the card goes on to do, in a process that does not know this package.
AND_THEN = {
    "open_clip": "tokens = tokenizer(texts); found = model.eval().encode_text(tokens, normalize=True)",
    "hf": """
tokens = processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")
found = model.get_text_features(**tokens).pooler_output
found = found / found.norm(dim=-1, keepdim=True)
""",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", AND_THEN)
def test_the_code_on_the_card(kind: str, hub: Hub, tmp_path: Path, publish: Callable[..., Done]) -> None:
    """From the hub: the weights of a run of mini, whose vocabulary is its own, and an export for transformers."""
    from advflyp.model.interop.export import export_model

    name = "mini" if kind == "open_clip" else "mini-vit"
    if kind == "open_clip":
        save_model(load_model(name), tmp_path / "model/best", {})
    else:
        export_model(name, kind, tmp_path / "model")
    done = publish(tmp_path / "model", "--licence", "apache-2.0", "--send", "--public", hub=hub)
    assert done.returncode == 0, done.stderr
    (code,) = re.findall(r"```python\n(.*?)```", hub.repos["user/robust"]["README.md"].decode(), re.DOTALL)
    texts = ["a photo of a cat", "Two dogs,  one bone!", "naïve café"]
    program = tmp_path / "card.py"
    program.write_text(
        f"import sys, torch\n{code}\ntexts = {texts!r}\n{AND_THEN[kind]}\n"
        "assert 'advflyp' not in sys.modules\ntorch.save(found.detach(), 'found.pt')\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    ran = subprocess.run(
        [sys.executable, program.name], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(found, load_model(name).encode_text(texts), rtol=0, atol=1e-6)


def is_private(hub: Hub, name: str) -> bool:
    """As newer and as older versions of the hub's client ask for it."""
    made = hub.made[name]
    return made.get("visibility") == "private" or made.get("private") is True


def test_public_only_where_it_is_said(run: Path, hub: Hub, publish: Callable[..., Done]) -> None:
    done = publish(run, "--licence", "mit", "--send", "--public", hub=hub)
    assert done.returncode == 0 and not is_private(hub, "user/robust")


def test_no_path_of_this_machine(tmp_path: Path) -> None:
    """Neither of sets and attacks, nor of what the card or another program's configuration says."""
    food, sets = load_set("mini/food"), tmp_path / "secret/customer"
    for place in range(4):
        folder = sets / ("cat" if place % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        food.image(place).save(folder / f"{place}.png")
    known = {
        "recipe": {
            "model": {"name": f"{tmp_path}/ckpt.pt@ViT-B-32/openai"},
            "data": {"train": f"folder:{sets}"},
            "method": {"name": "tecoa"},
        },
        "trained_on": [f"wds:{tmp_path}/secret/shards.tar"],
    }
    save_model(load_model("mini-vit", device="cpu"), tmp_path / "secret/model", known)
    model = load_model(tmp_path / "secret/model", device="cpu")
    attacks = ["clean", f"pgd1@{tmp_path}/secret/model"]
    evaluate(model, [f"folder:{sets}", str(sets)], attacks, out=tmp_path / "r.jsonl")
    found = prepare(tmp_path / "secret/model", "me/x", results=[tmp_path / "r.jsonl"])
    texts = {
        **found.written,
        **{name: path.read_bytes().decode("latin-1") for name, path in found.files.items()},
    }
    assert not [name for name, text in texts.items() if str(tmp_path) in text or "secret/" in text]
    card = found.written["README.md"]
    assert "finetuned from `ckpt.pt@ViT-B-32/openai`" in card and "- start: ckpt.pt@ViT-B-32/openai" in card
    assert "- data: folder:customer" in card and "PGD-1 @ model" in card
    sent = [json.loads(line) for line in found.written["results.jsonl"].splitlines()]
    assert {cell["set"] for cell in sent} == {"folder:customer", "customer"}
    assert {cell["attack"] for cell in sent} == {"clean", "pgd1@model"}


def test_no_path_in_the_configurations_of_other_programs(tmp_path: Path) -> None:
    from advflyp.model.interop.export import export_model

    export_model("mini-vit", "hf", tmp_path / "model")
    before = prepare(tmp_path / "model", "me/x")
    places = {
        "config.json": "_name_or_path",
        "vision/config.json": "_name_or_path",
        "tokenizer_config.json": "name_or_path",
    }
    for name, key in places.items():
        path = tmp_path / "model" / name
        path.write_text(
            json.dumps({**json.loads(path.read_text()), key: str(tmp_path / "ckpt"), "token": "/think"})
        )
    found = prepare(tmp_path / "model", "me/x")
    assert {*found.files, *found.written} == {*before.files, *before.written}
    for name, key in places.items():
        tree = json.loads(found.written[name])
        assert (tree[key], tree["token"]) == ("ckpt", "/think")


def test_the_card(run: Path) -> None:
    results = run.parent / "r.jsonl"
    text = prepare(run, "user/robust", results=[results], licence="mit").written["README.md"]
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["library_name"] == "open_clip"
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    cells = read_cells(results)
    assert {(r.dataset_type, r.metric_name, r.metric_value) for r in card.data.eval_results or []} == {
        (c.set, "accuracy, clean" if c.norm is None else "accuracy, PGD-2, ε = 1/255", round(c.accuracy, 4))
        for c in cells
    }
    food = next(cell for cell in cells if cell.set == "mini/food" and cell.norm is None)
    low, high = (round(100 * bound) for bound in food.ci95)
    assert f"| food | 20 | {100 * food.accuracy:.1f} ({low}–{high}) |" in text
    assert "2 steps of α = 1/255 from a random start" in text and "AutoAttack was not run" in text
    assert "method `advflyp`" in text and '[method]\nname = "advflyp"' in text and "- images seen: 32" in text
    assert load_sha(run) in text and "hub.load" not in text


def load_sha(run: Path) -> str:
    return json.loads((run / "best/card.json").read_text())["weights_sha256"]


def test_what_is_not_known_is_not_said(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["publish", str(tiny_folder), "--repo", "user/tiny"])
    printed = capsys.readouterr()
    assert "Not measured: nothing is known of the accuracy of these weights" in printed.out
    assert "- start: not known" in printed.out and "- hardware: not known" in printed.out
    assert "model-index" not in printed.out and "license" not in printed.out
    assert printed.err.count("warning") == 2


def test_masked_gradients_are_said(run: Path, tmp_path: Path) -> None:
    cells = read_cells(run.parent / "r.jsonl")
    for cell in cells:
        verdict = {"passed": cell.norm is None, "n": 4, "failed": []}
        append_cell(tmp_path / "flagged.jsonl", replace(cell, sanity=verdict))
    text = prepare(run, "user/robust", results=[tmp_path / "flagged.jsonl"]).written["README.md"]
    assert "A check for masked gradients failed" in text


@pytest.mark.parametrize("kind", ["hf", "onnx"])
def test_exported_folders(kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    from advflyp.model.interop.export import export_model

    folder = export_model("mini-vit", kind, tmp_path / "out").folder
    evaluate("mini-vit", ["mini/food"], ["clean"], limit=10, out=tmp_path / "r.jsonl")
    found = prepare(folder, "user/mini-vit", results=[tmp_path / "r.jsonl"], licence="apache-2.0")
    assert len(found.cells) == 1, "the weights of the export are those that were measured"
    card = ModelCard(found.written["README.md"])
    assert card.data.to_dict()["library_name"] == ("transformers" if kind == "hf" else "onnx")
    names = {name for name, _, _ in found.listing()}
    assert ("vision/model.safetensors" in names) == (kind == "hf")
    assert {"README.md", "card.json", "results.jsonl"} < names


def test_the_hub_says_no(run: Path, hub: Hub, publish: Callable[..., Done]) -> None:
    for token, arguments, message, status in (
        (
            "hf_wrong",
            [],
            "no permission to write to user/robust (the hub answered 401): `hf auth login`",
            2,
        ),
        (
            TOKEN,
            ["--repo", "somebody/robust"],
            "no permission to write to somebody/robust (the hub answered 403)",
            2,
        ),
    ):
        done = publish(run, "--licence", "mit", "--send", *arguments, hub=hub, token=token)
        assert done.returncode == status and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not hub.commits
    hub.broken = True
    done = publish(run, "--licence", "mit", "--send", hub=hub)
    assert (
        done.returncode == 1 and "the hub answered 500 for user/robust; nothing was published" in done.stderr
    )
    done = publish(run, "--licence", "mit", "--send")
    assert done.returncode == 1 and "the hub does not answer; nothing was published" in done.stderr, (
        done.stderr
    )


def test_wrong_input(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_rn_folder: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text("{")
    linked = tmp_path / "linked"
    save_model(load_model(tiny_rn_folder), linked, {})
    outside = tmp_path / "outside.safetensors"
    (linked / "open_clip_model.safetensors").rename(outside)
    (linked / "open_clip_model.safetensors").symlink_to(outside)
    results, mine = run.parent / "r.jsonl", tmp_path / "mine.md"
    mine.write_text("# mine")
    for arguments, message in (
        ([str(tmp_path / "empty"), "--repo", "user/x"], "holds no model: name a run folder"),
        ([str(run), "--repo", "robust"], "--repo is USER/NAME, not 'robust'"),
        ([str(run), "--repo", "me/my model"], "Repo id must use alphanumeric chars"),
        (
            [str(tiny_rn_folder), "--repo", "user/x", "--results", str(results)],
            "the results are of another model",
        ),
        ([str(run), "--repo", "user/x", "--results", str(tmp_path / "none.jsonl")], "none.jsonl"),
        ([str(linked), "--repo", "user/x"], "is a link; only files of the folder itself are published"),
        ([str(run), "--repo", "user/x", "--send"], "--send needs a licence, for example --licence"),
        (
            [str(run), "--repo", "user/x", "--card", str(results / "card.md")],
            "is not a folder; name another file",
        ),
        ([str(run), "--repo", "user/x", "--card", str(mine)], "mine.md was not written by advflyp"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["publish", *arguments])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error, error


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("mit", "mit"),
        ("MIT", "mit"),
        ("Apache 2.0", "apache-2.0"),
        ("cc_by_4.0", "cc-by-4.0"),
        ("openrail++",) * 2,
    ],
)
def test_licences_of_the_hub(typed: str, found: str) -> None:
    assert find_licence(typed) == found


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("apache", "did you mean apache-2.0?"),
        ("apache2", "did you mean apache-2.0"),
        ("gpl-3.0-or-later", "did you mean gpl-3.0"),
        ("GPLv3", "gpl-3.0"),
        ("cc-by-sa", "did you mean cc-by-sa-3.0 or cc-by-sa-4.0?"),
        ("CC0", "did you mean cc0-1.0?"),
        ("proprietary!!", "Any other licence is called other"),
    ],
)
def test_licences_that_the_hub_would_refuse(
    typed: str, hint: str, tmp_path: Path, publish: Callable[..., Done]
) -> None:
    done = publish(tmp_path, "--licence", typed)
    assert (
        done.returncode == 2 and f"the hub's list has no '{typed}'; " in done.stderr and hint in done.stderr
    )
    with pytest.raises(ValueError, match="the hub's list has no"):
        prepare(tmp_path, "user/robust", licence=typed)
