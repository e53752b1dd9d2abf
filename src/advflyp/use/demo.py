"""`advflyp demo`: a Gradio page that attacks an image and shows how one or two models classify it."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from advflyp.attack.threat import Threat
from advflyp.console import SafeConsole
from advflyp.data.sets.labelled import load_set
from advflyp.escape import for_html, for_rich
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import Classifier
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model, pick_device
from advflyp.report.measure.estimates import Condition
from advflyp.use.attack_image import AttackedImage, attack_with
from advflyp.use.eight_bits import check_reach
from advflyp.use.images import as_pil, from_bytes
from advflyp.use.labels import choose_labels
from advflyp.use.local_only import LocalOnly
from advflyp.use.predict import Guess
from advflyp.use.shown import verdict

LOOPBACK = "127.0.0.1"
NEEDS_GRADIO = "the demo needs Gradio: pip install gradio"
# Chosen by eye, for variety; the other labels are distractors.
SAMPLES = (
    ("food", "pizza"), ("food", "strawberry"), ("food", "pineapple"), ("animals-3d", "owl"),
    ("animals-3d", "penguin"), ("animals-3d", "butterfly"), ("animals-3d", "cactus"), ("objects-3d", "guitar"),
    ("objects-3d", "teddy bear"), ("travel", "bicycle"), ("travel", "sailboat"), ("travel", "rocket"),
)  # fmt: skip
OTHERS = (
    "bread", "hamburger", "watermelon", "cat", "dog", "fish", "tree", "flower", "car", "house", "chair", "shoe",
)  # fmt: skip
PROMPTS = ("a picture of a {}", "This is a photo of a {}.")
ATTACKS = {
    "random noise, no attack": "noise",
    "PGD-10": "pgd10",
    "CW-10": "cw10",
    "PGD-100": "pgd100",
    "AutoAttack (slow)": "autoattack",
}
MAX_LABELS, MAX_LABELS_FILE = 200, 1 << 16
MAX_UPLOAD = "16mb"
# Requests that wait while one is answered, and browser sessions whose last answer is kept.
WAITING, SESSIONS = 4, 8
NOT_SAID = "not said"
MARKS = {"wrong": ("–", ""), "fooled": ("✗", "bad"), "withstood": ("✓", "good")}
CARD_PARTS = 6
TITLE = "# A change nobody sees, and what it does to CLIP"
NOTE = (
    "Images are shown at the models' input size, as the 8-bit files that the models were asked about. Probabilities "
    "are among the labels given. An attack stops at the first image that fools the model; a model that withstands PGD "
    "may still fall to AutoAttack."
)
# The small images of small models are not blurred, and the samples stay a grid on a phone.
CSS = """
.shot img { image-rendering: pixelated; width: 100% !important; height: 100% !important; object-fit: contain; }
.verdict { font-size: 1.05rem; } .good { color: #15803d; } .bad { color: #c2410c; }
.dark .good { color: #4ade80; } .dark .bad { color: #fb923c; }
#samples .grid-wrap { max-height: none; overflow: visible; }
#samples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#samples .thumbnail-item { min-width: 0; aspect-ratio: 1; }
.gradio-container { max-width: 1240px !important; margin: auto; }
"""


class Demo:
    """One model or two, and the images of the mini corpus."""

    def __init__(self, models: list[CLIP]) -> None:
        self.models = models
        self.samples: list[Image.Image] = []
        for name, label in SAMPLES:
            labelled = load_set(f"mini/{name}")
            self.samples.append(labelled.image(labelled.labels.tolist().index(labelled.classes.index(label))))
        # Labels are encoded once, not for every request.
        self.classifiers = lru_cache(maxsize=8)(self._classifiers)

    def _classifiers(self, names: tuple[str, ...]) -> list[Classifier]:
        labels = choose_labels(names, PROMPTS)
        return [labels.classifier(model) for model in self.models]

    def attack(self, image: int | bytes, eps: float, attack: str, label: str, names: str) -> AttackedImage:
        """Attack each model separately.

        Args:
            image: The number of a sample, or an encoded image.
            eps: The radius in grey levels (of 255).
            attack: A name of `ATTACKS`.
            label: What the image shows; `NOT_SAID` attacks each model's clean prediction.
            names: The labels that the models choose among, one per line.

        Raises:
            ValueError: If one of the arguments cannot be used.
        """
        lines = _lines(names)
        if len(lines) > MAX_LABELS:
            raise ValueError(
                f"at most {MAX_LABELS} labels here, not {len(lines)}; `advflyp attack` takes more"
            )
        threat = Threat(norm="linf", eps=eps / 255)
        check_reach(threat)
        labels = choose_labels(lines, PROMPTS)
        decoded = self.samples[image] if isinstance(image, int) else from_bytes(image, "the image")
        shows = None if label == NOT_SAID else label
        return attack_with(
            self.classifiers(lines), labels, decoded, shows, find_attack(ATTACKS[attack]), threat
        )

    def answer(self, *values: Any) -> list[Any]:
        """Answer a request: the status as HTML, then the contents of all cards."""
        try:
            found = self.attack(*values)
        except ValueError as error:
            said = f"<p class=bad role=alert>{for_html(str(error))}</p>"
            return [said, *[None] * (CARD_PARTS * len(self.models))]
        said = f"<p>{Condition(found.attack, found.norm, found.eps).title}</p>"
        return [said, *(part for number in range(len(self.models)) for part in card(found, number))]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def card(found: AttackedImage, model: int) -> list[Any]:
    """The contents of a model's card: verdict, clean image, change, attacked image, guesses before and after."""
    result = found.made[model]
    mark, kind = MARKS[result.outcome]
    return [
        f"<h3>{for_html(found.models[model])}</h3>"
        f"<p class='verdict {kind}'>{mark} {for_html(verdict(found, model))}</p>"
        f"<p>Change shown ×{round(result.amplification)}.</p>",
        as_pil(result.clean),
        as_pil(result.difference),
        as_pil(result.adversarial),
        _bars(found.clean[model]),
        _bars(result.guesses[model]),
    ]


def _bars(guesses: list[Guess]) -> dict[str, float]:
    return {guess.label: guess.probability for guess in guesses}


def build_page(models: list[CLIP]) -> Any:
    """The page, a `gradio.Blocks`.

    Raises:
        ValueError: If Gradio is not installed.
    """
    gradio = _gradio()
    demo = Demo(models)
    with gradio.Blocks(title="advflyp demo", analytics_enabled=False) as page:
        image = gradio.State(0)
        gradio.Markdown(TITLE)
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=1, min_width=300):
                samples, upload, eps, attack, label, lines, file = _controls(gradio, demo)
            with gradio.Column(scale=3):
                status = gradio.HTML()
                with gradio.Row(equal_height=False):
                    cards = [part for _ in models for part in _card_parts(gradio)]
                gradio.Markdown(NOTE)

        def choices(text: str, chosen: str) -> Any:
            names = [NOT_SAID, *dict.fromkeys(_lines(text))]
            return gradio.Dropdown(names, value=chosen if chosen in names else NOT_SAID)

        def sample(event: gradio.SelectData) -> tuple[int, str]:  # pyright: ignore[reportInvalidTypeForm]
            return event.index, SAMPLES[event.index][1]

        def from_file(data: bytes) -> str:
            return data[:MAX_LABELS_FILE].decode("utf-8", "replace")

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        samples.select(sample, None, [image, label], **quiet)
        upload.upload(lambda data: (data, NOT_SAID), upload, [image, label], **quiet)
        file.upload(from_file, file, lines, **quiet)
        lines.change(choices, [lines, label], label, **quiet)
        gradio.on(
            [page.load, image.change, eps.release, attack.change, label.change, lines.blur, file.upload],
            demo.answer, [image, eps, attack, label, lines], [status, *cards],
            trigger_mode="always_last", concurrency_limit=1, api_visibility="private",
        )  # fmt: skip
    return page.queue(max_size=WAITING)


def _controls(gradio: Any, demo: Demo) -> tuple[Any, ...]:
    samples = gradio.Gallery(
        demo.samples, label="Image", format="png", columns=4, allow_preview=False, height="auto",
        object_fit="contain", buttons=[], elem_id="samples",
    )  # fmt: skip
    upload = gradio.UploadButton("Use an image of yours", file_types=["image"], type="binary")
    eps = gradio.Slider(1, 16, 2, step=1, label="ε: how far a pixel may change, in grey levels (of 255)")
    attack = gradio.Dropdown(list(ATTACKS), value="PGD-10", label="Attack")
    every = [*(label for _, label in SAMPLES), *OTHERS]
    label = gradio.Dropdown([NOT_SAID, *every], value=every[0], label="The image shows")
    with gradio.Accordion("Labels", open=False):
        lines = gradio.Textbox(
            "\n".join(every), lines=8, label="Labels that the models choose among, one per line"
        )
        file = gradio.UploadButton("Labels from a file", file_types=[".txt"], type="binary")
    return samples, upload, eps, attack, label, lines, file


def _card_parts(gradio: Any) -> list[Any]:
    image: dict[str, Any] = {"format": "png", "interactive": False, "elem_classes": "shot"}
    image |= {"height": 190, "min_width": 90}
    with gradio.Column(min_width=320):
        head = gradio.HTML()
        with gradio.Row():
            clean = gradio.Image(label="clean", buttons=[], **image)
            change = gradio.Image(label="change", buttons=[], **image)
            attacked = gradio.Image(label="attacked", buttons=["download"], **image)
        with gradio.Row():
            before, after = (
                gradio.Label(label=label, num_top_classes=4, min_width=140, show_heading=False)
                for label in ("clean", "attacked")
            )
    return [head, clean, change, attacked, before, after]


def serve(
    model: str, against: str | None = None, *, port: int = 8765, device: str | torch.device = "auto"
) -> None:
    """Show the page at http://127.0.0.1:PORT/ until Ctrl-C.

    Raises:
        ValueError: If a model is unknown, the port is in use, or Gradio is not installed.
    """
    console, place = SafeConsole(), pick_device(device)
    _gradio()
    port = _free_port(port)
    with console.status("loading"):
        models = [load_model(name, device=place) for name in (model, against) if name is not None]
    with served(models, port) as url:
        console.print(for_rich(f"the demo is at {url} (Ctrl-C ends it)"))
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print()
            console.print(for_rich("ended"))


@contextmanager
def served(models: list[CLIP], port: int) -> Iterator[str]:
    """Serve the page on this machine only; yields its address. Uploads and answers are deleted at the end."""
    gradio = _gradio()
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]  # Gradio's

    with TemporaryDirectory() as folder:
        # Gradio reads it whenever it stores something.
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(models)
        page.launch(
            server_name=LOOPBACK, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True,
            max_file_size=MAX_UPLOAD, state_session_capacity=SESSIONS, footer_links=["settings"], ssr_mode=False,
            enable_monitoring=False, mcp_server=False, pwa=False, css=CSS,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            app_kwargs={"middleware": [Middleware(LocalOnly)]},
        )  # fmt: skip
        try:
            yield f"http://{LOOPBACK}:{port}/"
        finally:
            page.close(verbose=False)


def _gradio() -> Any:
    # Read when Gradio is imported: no statistics, no check for a newer version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise ValueError(NEEDS_GRADIO) from None
    return gradio


def _free_port(port: int) -> int:
    """The port, or any free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OverflowError:
            raise ValueError(f"a port is a number from 0 to 65535, not {port}") from None
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}); choose another with --port, or --port 0 for a free one"
            ) from None
        return probe.getsockname()[1]
