"""The commands that use a model on pictures: predict, attack, demo."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from advflyp.cli.parse import Arg
from advflyp.terminal import say


@dataclass
class Predict:
    """Say what pictures show, among labels of your own."""

    model: Annotated[str, Arg("MODEL", positional=True)]
    """As in `advflyp eval`: mini, ViT-B-32/openai, a run folder, …"""
    images: Annotated[tuple[Path, ...], Arg("IMAGE", positional=True, input="there is no picture")]
    """Picture files."""
    labels: Annotated[tuple[str, ...], Arg("LABEL")]
    """At least two: cat,dog or cat dog; or a file with one a line; or a dataset (mini/food), whose class names and
    prompts are taken."""
    template: Annotated[tuple[str, ...], Arg("PROMPT", commas=False)] = ()
    """Prompts with {} for the label, or openai (80 prompts); by default the set's, else "This is a photo of a {}."."""
    top: int = 5
    """How many labels to show of each picture."""
    json: bool = False
    """Print JSON instead of a table."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        from advflyp.console import SafeConsole
        from advflyp.use.predict import predict
        from advflyp.use.shown import predictions_table

        found = predict(
            self.model,
            self.images,
            _chosen(self.labels),
            templates=self.template,
            top=self.top,
            device=self.device,
        )
        if self.json:
            # Only ASCII: whatever the labels are, it is JSON on every terminal and in every locale.
            say(*json.dumps([asdict(one) for one in found], indent=2).splitlines())
        else:
            SafeConsole().print(predictions_table(found))


@dataclass
class Attack:
    """Make a picture adversarial and write it as a picture file, with the perturbation and what models say of both."""

    model: Annotated[str, Arg("MODEL", positional=True)]
    """As in `advflyp eval`: mini, ViT-B-32/openai, a run folder, …"""
    image: Annotated[Path, Arg("IMAGE", positional=True, input="there is no picture")]
    """A picture file."""
    labels: Annotated[tuple[str, ...], Arg("LABEL")]
    """What the model chooses among, as in `advflyp predict`."""
    label: str | None = None
    """What the picture shows; by default each model is moved away from its own answer."""
    eps: str = "4/255"
    """Radius in pixels of [0, 1], at least one grey level, 1/255."""
    attack: str = "pgd10"
    """As in `advflyp eval`: pgdN, cwN, autoattack, …"""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the threat model."""
    against: str | None = None
    """A second model: each is attacked for itself, and each says what it sees in both adversarial pictures."""
    template: Annotated[tuple[str, ...], Arg("PROMPT", commas=False)] = ()
    """As in `advflyp predict`."""
    out: Annotated[Path, Arg("FOLDER", output="folder")] = Path("attack")
    """Folder for clean.png, adversarial.png, difference.png (amplified), those of the second model, attack.json."""
    seed: Annotated[int, Arg(least=0)] = 0
    """Of the attack's random start."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        from advflyp.config import number
        from advflyp.console import SafeConsole
        from advflyp.escape import for_rich
        from advflyp.use.attack_files import draft_of, write_files
        from advflyp.use.attack_image import attack_image
        from advflyp.use.pictures import sha256_of
        from advflyp.use.shown import attacked_table, legend, title, verdict

        eps = number(self.eps, "--eps")
        asked = {name: str(value) for name, value in vars(self).items() if name not in ("out", "device")}
        asked["image_sha256"] = sha256_of(self.image)
        with draft_of(self.out, asked) as draft:
            found = attack_image(
                self.model,
                self.image,
                _chosen(self.labels),
                eps=eps,
                label=self.label,
                attack=self.attack,
                norm=self.norm,
                against=self.against,
                templates=self.template,
                seed=self.seed,
                device=self.device,
            )
            write_files(found, draft, asked)
        console = SafeConsole()
        console.print(for_rich(title(found)))
        console.print(attacked_table(found))
        console.print(for_rich(legend(found), "dim"))
        for place in range(len(found.made)):
            console.print(for_rich(verdict(found, place)))
        say(f"the pictures are in {self.out}")


def _chosen(labels: tuple[str, ...]) -> str | tuple[str, ...]:
    """Several are the labels themselves; one is where they are, a file or a dataset."""
    return labels[0] if len(labels) == 1 else labels


@dataclass
class Demo:
    """Show a page on this machine: pick or upload a picture, attack it, see one model or two side by side."""

    model: Annotated[str, Arg("MODEL", positional=True)] = "mini"
    """As in `advflyp eval`: mini, ViT-B-32/openai, a run folder, …"""
    against: str | None = None
    """A second model to compare, for example the run folder of a robust one."""
    port: Annotated[int, Arg(least=0)] = 8765
    """Of http://127.0.0.1:PORT/; 0 takes a free one. Other machines cannot reach it."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        from advflyp.use.demo import serve

        serve(self.model, self.against, port=self.port, device=self.device)
