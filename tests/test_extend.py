"""The examples of docs/extend.md, run as they stand there; and names that lead nowhere."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.cli.main import main
from advflyp.evaluation.results import read_cells
from advflyp.plugins import load_object
from advflyp.training.runlog import read_metrics
from data.test_training import class_tree
from helpers import write_folder

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/extend.md"
COMMANDS = [shlex.split(line) for line in re.findall(r"^    advflyp (.+)$", PAGE.read_text(), re.M)]
BLOCK = re.compile(r'```python title="(\w+)\.py"\n(.*?)```', re.DOTALL)
MOST_LINES = 45


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files in the current folder."""
    found = BLOCK.findall(PAGE.read_text())
    assert [name for name, _ in found] == ["my_method", "my_trades", "my_set", "my_attack", "any_classifier"]
    for name, code in found:
        assert code.count("\n") < MOST_LINES
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_of(module: str) -> list[str]:
    """The page's command that names an object of the module, as it stands there."""
    (command,) = [words for words in COMMANDS if any(word.startswith(f"{module}:") for word in words)]
    return command


def test_the_page_has_a_command_for_each_example() -> None:
    assert len(COMMANDS) == 4


def test_a_method_on_labelled_images_trains(examples: Path, tiny_folder: Path) -> None:
    class_tree(examples / "classes", 64)
    main([*command_of("my_trades"), *smaller(tiny_folder, examples / "classes")])
    lines = [line for line in read_metrics(Path("runs/trades")) if line["kind"] == "train"]
    assert len(lines) == 6 and min(line["loss/divergence"] for line in lines) > 0
    assert min(line["attack_gain"] for line in lines) > 1
    assert {line["loss/natural"] for line in lines}.isdisjoint({0.0})


def test_the_method_trains_and_resumes(examples: Path, tiny_folder: Path) -> None:
    command = command_of("my_method")
    assert command[0] == "train" and command[-2:] == ["--out", "runs/anchor"]
    keys = smaller(tiny_folder, write_folder(examples / "pairs", 64))
    main([*command, *keys])
    lines = [line for line in read_metrics(Path("runs/anchor")) if line["kind"] == "train"]
    losses, gains = [line["loss/anchor"] for line in lines], [line["attack_gain"] for line in lines]
    assert len(losses) == 6 and min(losses) > 0
    assert min(gains) > 1, "the attack raises the method's own loss"
    main([*command, *keys, "--resume"])


def smaller(model: Path, data: Path) -> list[str]:
    """What makes the page's command 6 steps of 16 images with a tiny model."""
    keys = {"model.name": model, "data.train": data, "train.max_steps": 6, "data.batch_size": 16}
    keys |= {"optim.warmup_steps": 0, "validate.set": "none", "log.every": 1, "train.device": "cpu"}
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def test_the_set_is_measured(examples: Path) -> None:
    main([*command_of("my_set"), "--out", "r.jsonl"])
    clean, attacked = read_cells(Path("r.jsonl"))
    assert clean.set == attacked.set == "my_set:colours" and clean.n == 3
    assert clean.correct >= attacked.correct


def test_the_attack_measures_and_stays_in_the_ball(examples: Path) -> None:
    command = command_of("my_attack")
    main([*command, "--limit", "8", "--out", "r.jsonl"])
    assert [cell.attack for cell in read_cells(Path("r.jsonl"))] == ["clean", "my_attack:draws", "pgd10"]
    larger = ["--sets", "mini/food", "--limit", "20", "--eps", "16/255", "--out", "l.jsonl"]
    main(["eval", "mini", *larger, "--attacks", "noise", "my_attack:draws"])
    noise, draws = read_cells(Path("l.jsonl"))
    assert draws.correct < noise.correct, "twenty draws find more than one"
    assert len(draws.attack_args["source_sha256"]) == 64

    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 3
    weights = torch.randn(48, 3)
    for norm, eps in (("linf", 8 / 255), ("l2", 0.5)):
        threat = Threat(norm=norm, eps=eps)  # type: ignore[arg-type]
        found = [
            load_object("my_attack:draws")(
                Victim(lambda x: x.flatten(1) @ weights),
                images,
                labels,
                threat,
                streams=Streams(0, torch.arange(8)),
            )
            for _ in range(2)
        ]
        assert torch.equal(*found)
        assert (
            threat.distance(found[0], images).max() <= eps + 1e-6
            and 0 <= found[0].min() <= found[0].max() <= 1
        )


def test_our_attacks_on_another_classifier(examples: Path) -> None:
    names = runpy.run_path("any_classifier.py")
    assert 0 <= names["robust"] < 1
    assert names["threat"].contains(names["images"], names["adversarial"]).all()


def test_other_code_is_another_measurement(examples: Path) -> None:
    from advflyp.evaluation.attacks import find_attack

    attack, threat = find_attack("my_attack:draws"), Threat(norm="linf", eps=0.1)
    before = attack.arguments(threat, 3)
    code = Path("my_other_attack.py")
    code.write_text(Path("my_attack.py").read_text().replace("range(20)", "range(30)"))
    assert find_attack("my_other_attack:draws").arguments(threat, 3) != before


BROKEN = """
from advflyp.method.base import Method

from dataclasses import dataclass

from advflyp.attack.base import SingleAttack

class Bare(Method):
    pass

class Silent(Method):
    needs_original = False
    def attack_loss(self, images_adv, batch):
        return self.model.encode_image(images_adv).sum(1)
    def losses(self, images, images_adv, batch):
        return {"own": self.attack_loss(images_adv, batch)}

@dataclass(frozen=True)
class Nothing:
    pass

class PerImage(Silent):
    config: Nothing

class Pear(PerImage):
    trains_on = "pears"

three = 3

class Mine(SingleAttack):
    def perturb(self, victim, images, labels, threat, *, streams):
        return images

def nothing():
    pass

def no_streams(victim, images, labels, threat):
    return images

def too_far(victim, images, labels, threat, *, streams):
    return images + 2 * threat.eps

def forgets(victim, images, labels, threat, *, streams):
    pass
"""


def test_names_that_lead_nowhere(examples: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_broken.py").write_text("import a_package_that_is_not_there\n")
    Path("my_broken_things.py").write_text(BROKEN)
    train = ["train", str(recipe), "--out", "run", "--method.name"]
    evaluate = ["eval", "mini", "--sets", "mini/food", "--attacks"]
    for arguments, message in (
        ([*train, "nothing:Here"], "'nothing:Here': there is no module nothing, neither installed nor in"),
        ([*train, "my_method:Anker"], "my_method.py has no Anker"),
        ([*train, "itertools:Anchor"], "the module itertools has no Anchor"),
        ([*train, "my_set:colours"], "'my_set:colours' is not a subclass of advflyp.method.Method"),
        (
            [*train, "my_broken_things:Bare"],
            "'my_broken_things:Bare' lacks attack_loss, losses, needs_original",
        ),
        ([*train, "my_broken_things:Silent"], "must annotate `config` with the dataclass of its recipe keys"),
        ([*train, "my_broken_things:Pear"], "trains_on is one of pairs, labelled, images, not 'pears'"),
        ([*evaluate, "my_broken_things:three"], "cannot be called; an attack is a function or an `Attack`"),
        ([*evaluate, "my_broken_things:Mine"], "is a class; name an instance of it"),
        ([*evaluate[:3], "my_broken_things:nothing"], "must return a LabelledSet, not NoneType"),
        ([*evaluate, "my_broken_things:no_streams"], "must take the keyword argument `streams`"),
        (
            [*evaluate, "my_broken_things:too_far"],
            "outside the ball or the pixel range; return threat.project(",
        ),
        ([*evaluate, "my_broken_things:forgets"], "must return images of the shape"),
        ([*train, "my_method:Anchor", "--method.wheight", "2"], "unknown key 'method.wheight'; did you mean"),
        ([*evaluate, "nothing:here"], "there is no module nothing"),
        (["eval", "mini", "--sets", "nothing:here"], "there is no module nothing"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error, error
    own = Path("own.toml")
    text = recipe.read_text().replace("feature_weight = 1.0\nlogit_weight = 1.0\n", "")
    own.write_text(text.replace('"advflyp"', '"my_broken_things:PerImage"'))
    for command in (["validate", "own.toml"], ["train", "own.toml", "--out", "run"]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and "PerImage.losses must return a dict of scalars" in error, error
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        main([*evaluate, "my_broken:attack"])
