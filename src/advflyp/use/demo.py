"""`advflyp demo`: what its page asks, and what it is answered."""

import base64
import binascii
import io
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import torch

from advflyp.attack.threat import Threat
from advflyp.config import fill
from advflyp.console import SafeConsole
from advflyp.data.sets.labelled import load_set
from advflyp.escape import for_html, for_rich
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import Classifier
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model, pick_device
from advflyp.report.measure.estimates import attack_title, radius
from advflyp.use.attack_image import attack_with
from advflyp.use.eight_bits import check_reach
from advflyp.use.labels import choose_labels
from advflyp.use.pictures import from_bytes
from advflyp.use.server import MAX_PICTURE, LocalServer

# Chosen by eye, for variety; the other labels are there to be confused with.
SAMPLES = (
    ("food", "pizza"), ("food", "strawberry"), ("food", "pineapple"), ("animals-3d", "owl"),
    ("animals-3d", "penguin"), ("animals-3d", "butterfly"), ("animals-3d", "cactus"), ("objects-3d", "guitar"),
    ("objects-3d", "teddy bear"), ("travel", "bicycle"), ("travel", "sailboat"), ("travel", "rocket"),
)  # fmt: skip
OTHERS = (
    "bread", "hamburger", "watermelon", "cat", "dog", "fish", "tree", "flower", "car", "house", "chair", "shoe",
)  # fmt: skip
PROMPTS = ("a picture of a {}", "This is a photo of a {}.")
ATTACKS = (
    ("noise", "random noise, no attack"),
    ("pgd10", "PGD-10"),
    ("cw10", "CW-10"),
    ("pgd100", "PGD-100"),
    ("autoattack", "AutoAttack (slow)"),
)
MAX_LABELS = 200


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the page asks.

    sample: which of the bundled pictures;  file, name: else an encoded picture in base64, and what it is called
    label:  what it shows; "" where nobody says so: each model is moved away from its own answer
    """

    labels: tuple[str, ...]
    eps: float
    attack: str
    sample: int | None = None
    file: str = ""
    name: str = "the picture"
    label: str = ""


class Demo:
    """One model or two, and the bundled pictures."""

    def __init__(self, models: list[CLIP]) -> None:
        self.models = models
        self.pictures = []
        for name, label in SAMPLES:
            labelled = load_set(f"mini/{name}")
            place = labelled.labels.tolist().index(labelled.classes.index(label))
            self.pictures.append(labelled.image(place))
        # Labels are encoded once, not for every question.
        self.classifiers = lru_cache(maxsize=8)(self._classifiers)

    def setup(self) -> dict[str, Any]:
        """What the page begins with."""
        sizes = " and ".join(dict.fromkeys("×".join(map(str, model.image_size)) for model in self.models))
        return {
            "models": [model.name for model in self.models],
            "samples": [
                {"label": label, "picture": _data_url(_png(picture))}
                for (_, label), picture in zip(SAMPLES, self.pictures, strict=True)
            ],
            "labels": [*(label for _, label in SAMPLES), *OTHERS],
            "attacks": ATTACKS,
            "limit": MAX_PICTURE,
            "about": f"Pictures are shown at the models' input size, {sizes} pixels, as the 8-bit files that the "
            "models were asked about. Probabilities are among the labels given. An attack stops at the first picture "
            "that fools the model; a model that withstands PGD may still fall to AutoAttack.",
        }

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A `Question` as JSON → an `AttackedPicture` as JSON. ValueError for what cannot be done."""
        started = time.monotonic()
        question = fill(Question, asked)
        if len(question.labels) > MAX_LABELS:
            raise ValueError(
                f"at most {MAX_LABELS} labels here, not {len(question.labels)}; `advflyp attack` takes more"
            )
        if question.attack not in dict(ATTACKS):
            raise ValueError(f"the attack is one of {', '.join(dict(ATTACKS))}")
        threat = Threat(norm="linf", eps=question.eps)
        check_reach(threat)
        labels = choose_labels(question.labels, PROMPTS)
        found = attack_with(
            self.classifiers(question.labels),
            labels,
            self._picture(question),
            question.label or None,
            find_attack(question.attack),
            threat,
        )
        record = asdict(found)
        for made, model in zip(record["made"], self.models, strict=True):
            made["side"] = max(model.image_size)
            for picture in ("clean", "adversarial", "difference"):
                made[picture] = _data_url(made[picture])
        return {
            **record,
            "title": f"{attack_title(found.attack)}, ε\u00a0=\u00a0{radius(found.eps, found.norm)}",
            "seconds": time.monotonic() - started,
        }

    def _picture(self, question: Question) -> Any:
        if question.sample is not None:
            if not 0 <= question.sample < len(self.pictures):
                raise ValueError(f"there are samples 0 to {len(self.pictures) - 1}, not {question.sample}")
            return self.pictures[question.sample]
        try:
            data = base64.b64decode(question.file, validate=True)
        except binascii.Error:
            raise ValueError(f"{question.name} did not arrive whole; send it again") from None
        return from_bytes(data, question.name)

    def _classifiers(self, names: tuple[str, ...]) -> list[Classifier]:
        labels = choose_labels(names, PROMPTS)
        return [labels.classifier(model) for model in self.models]


def serve(
    model: str, against: str | None = None, *, port: int = 8765, device: str | torch.device = "auto"
) -> None:
    """Show the page at http://127.0.0.1:PORT/ until Ctrl-C; ValueError for an unknown model or a port in use."""
    console, place = SafeConsole(), pick_device(device)
    with LocalServer(port) as server:
        with console.status("loading"):
            names = [name for name in (model, against) if name is not None]
            open_demo(server, [load_model(name, device=place) for name in names])
        console.print(for_rich(f"the demo is at {server.url} (Ctrl-C ends it)"))
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()
            console.print(for_rich("ended"))


def open_demo(server: LocalServer, models: list[CLIP]) -> None:
    """Give a server the page and its answers."""
    demo = Demo(models)
    page = files("advflyp") / "use" / "page"
    name = " and ".join(model.name for model in models)
    server.show(
        head='<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>advflyp demo: {for_html(name)}</title>\n"
        '<link rel="icon" href="data:,">',
        style=(files("advflyp") / "report" / "pages" / "templates" / "style.css").read_text("utf-8")
        + (page / "demo.css").read_text("utf-8"),
        body=(page / "demo.html").read_text("utf-8"),
        data=demo.setup(),
        script=(page / "demo.js").read_text("utf-8"),
        answer=demo.answer,
    )


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
