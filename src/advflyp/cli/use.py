"""Commands that use a model on images: predict, attack, demo."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from advflyp.cli.arguments import Arg, AtLeast0, Device, Model, Norm, OutFolder, Prompts, Seed
from advflyp.cli.heavy import heavy_imports
from advflyp.config import number
from advflyp.terminal import say

Labels = Annotated[tuple[str, ...], Arg("LABEL")]
IMAGE = Arg("IMAGE", input="there is no image")


def predict(
    model: Model,
    images: Annotated[tuple[Path, ...], IMAGE],
    /,
    *,
    labels: Labels,
    template: Prompts = (),
    top: int = 5,
    json: bool = False,
    device: Device = "auto",
) -> None:
    """Classify images among labels of your own.

    Args:
        images: Image files.
        labels: At least two labels (cat,dog or cat dog), a file with one per line, or a dataset (mini/food), whose
            class names and prompts are used.
        template: Prompts with {} for the label, or openai for 80 prompts (default: the dataset's, else "This is a
            photo of a {}.").
        top: Labels to show for each image.
        json: Print JSON instead of a table.
    """
    with heavy_imports():
        from advflyp.console import SafeConsole
        from advflyp.use.predict import predict
        from advflyp.use.shown import predictions_table

    found = predict(model, images, _chosen(labels), templates=template or None, top=top, device=device)
    if json:
        # ASCII only: whatever the labels are, it is JSON on every terminal and in every locale.
        say(*json_format.dumps([asdict(one) for one in found], indent=2).splitlines())
    else:
        SafeConsole().print(predictions_table(found))


def attack(
    model: Model,
    image: Annotated[Path, IMAGE],
    /,
    *,
    labels: Labels,
    label: str | None = None,
    eps: str = "4/255",
    attack: str = "pgd10",
    norm: Norm = "linf",
    against: str | None = None,
    template: Prompts = (),
    out: OutFolder = Path("attack"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Make an image adversarial and write it as a PNG, with the perturbation and the predictions before and after.

    Args:
        image: An image file.
        labels: Labels that the model chooses among, as in `advflyp predict`.
        label: The label the attack moves away from (default: each model's clean prediction).
        eps: Radius in pixels of [0, 1], at least one grey level, 1/255. With --norm l2 it is the length of the whole
            change, usually 0.5 to 3.
        attack: As in `advflyp eval`: pgdN, cwN, autoattack, …
        against: A second model. Each is attacked separately, and each classifies both adversarial images.
        out: Folder for clean.png, adversarial.png, difference.png (amplified), the same for --against, and attack.json.
    """
    asked = {name: value for name, value in locals().items() if name not in ("out", "device")}
    # As attack.json gives it back, to be compared with a later request.
    asked = json_format.loads(json_format.dumps(asked, default=str))
    with heavy_imports():
        from advflyp.console import SafeConsole
        from advflyp.escape import for_rich
        from advflyp.use.attack_files import draft_of, write_files
        from advflyp.use.attack_image import attack_image
        from advflyp.use.images import sha256_of
        from advflyp.use.shown import attacked_table, legend, title, verdict

    radius = number(eps, "--eps")
    asked["image_sha256"] = sha256_of(image)
    with draft_of(out, asked) as draft:
        found = attack_image(
            model,
            image,
            _chosen(labels),
            eps=radius,
            label=label,
            attack=attack,
            norm=norm,
            against=against,
            templates=template or None,
            seed=seed,
            device=device,
        )
        # Loading a model may take long, and attack.json says which image it was.
        if sha256_of(image) != asked["image_sha256"]:
            raise ValueError(f"{image} was changed before it was attacked; run the command again")
        write_files(found, draft, asked)
    console = SafeConsole()
    console.print(for_rich(title(found)))
    console.print(attacked_table(found))
    console.print(for_rich(legend(found), "dim"))
    for place in range(len(found.made)):
        console.print(for_rich(verdict(found, place)))
    say(f"the images are in {out}")


def _chosen(labels: tuple[str, ...]) -> str | tuple[str, ...]:
    """Several labels are meant as they are; a single one names a file or a dataset."""
    return labels[0] if len(labels) == 1 else labels


def demo(
    model: Model = "mini",
    /,
    *,
    against: str | None = None,
    port: AtLeast0 = 8765,
    device: Device = "auto",
) -> None:
    """Serve a page on this machine: pick or upload an image, attack it, see one model or two side by side.

    Args:
        against: A second model to compare, for example the run folder of a robust one.
        port: Port of http://127.0.0.1:PORT/; 0 picks a free one. Other machines cannot reach it.
    """
    with heavy_imports():
        from advflyp.use.demo import serve

    serve(model, against, port=port, device=device)
