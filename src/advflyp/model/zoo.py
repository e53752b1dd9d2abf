"""The zoo: published robust CLIPs by name, as facts about other people's models.

    load_model("fare4-vit-l-14")        and every command that takes a model
    advflyp models, advflyp models NAME

This table alone decides what is fetched: the repository, the file, and the model that gives what the repository lacks.
The facts are from model cards, READMEs and papers; what none of them says is None. docs/zoo.md is made from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from advflyp.config import nearest


@dataclass(frozen=True)
class Published:
    """Accuracies that others published, in %.

    Attributes:
        protocol: On which data, under which attack, and where that is written.
        clean: Without an attack.
        robust: By the radius of the attack.
    """

    protocol: str
    clean: float
    robust: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A published model.

    Attributes:
        name: What `load_model` calls it.
        repository: OWNER/NAME on the Hugging Face hub.
        layout: "open_clip": as open_clip saves a model. "transformers": the weights and config.json of transformers, to
            which `base` gives preprocessing and tokenizer. "tower": one file with the weights of an image tower, to
            which `base` gives the rest.
        file: The file of the layout "tower".
        base: The model that it was finetuned from, as open_clip calls it; None if it was trained from scratch.
        architecture: As open_clip calls it.
        method: What made it robust.
        eps: L∞ radius of the adversarial training, in pixels of [0, 1].
        towers: Which of its towers are robust.
        trained_on: Sets that it was finetuned on, as `data.train` names them.
        licence: Of the weights, by the hub's identifiers.
        paper: Authors, title, where, and the number on arXiv.
        published: Accuracies.
        revision: The commit that is loaded; None for the newest.
        sha256: Hashes that files must have.
        notes: What else a user should know, above all what could not be checked.
    """

    name: str
    repository: str
    layout: Literal["open_clip", "transformers", "tower"]
    file: str | None = None
    base: str | None
    architecture: str
    method: str
    eps: str | None
    towers: str = "image"
    trained_on: tuple[str, ...] = ("imagenet@train",)
    licence: str | None
    paper: str
    published: tuple[Published, ...] = ()
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """What is fetched, without the revision, as a name that `load_model` takes."""
        file = f"/{self.file}" if self.file else ""
        base = f"@{self.base}" if self.layout != "open_clip" else ""
        return f"hf-hub:{self.repository}{file}{base}"

    def card(self) -> dict[str, Any]:
        """The facts as the card of a model (`card.json`), for what is exported or finetuned from it."""
        return {
            "name": self.name,
            "source": self.address,
            "method": self.method,
            "paper": self.paper,
            "licence": self.licence,
            "trained_on": list(self.trained_on),
        }


FARE = (
    "Schlarmann, Singh, Croce, Hein: Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust "
    "Large Vision-Language Models. ICML 2024. arXiv 2402.12336"
)
TECOA = (
    "Mao, Geng, Yang, Wang, Vondrick: Understanding Zero-Shot Adversarial Robustness for Large-Scale Models. ICLR "
    "2023. arXiv 2212.07016. These weights: arXiv 2402.12336"
)
METRICS = (
    "Croce, Schlarmann, Singh, Hein: Adversarially Robust CLIP Models Can Induce Better (Robust) Perceptual Metrics. "
    "SaTML 2025. arXiv 2502.11725"
)
LEAF = (
    "Abad Rocamora, Schlarmann, Singh, Wu, Hein, Cevher: Robustness in Both Domains: CLIP Needs a Robust Text Encoder. "
    "NeurIPS 2025. arXiv 2506.03355"
)
DELTA = (
    "Wang, Xie, Bartoldson, Kailkhura: Double Visual Defense: Adversarial Pre-training and Instruction Tuning for "
    "Improving Vision-Language Model Robustness. arXiv 2501.09446"
)
QTAFT = (
    "Waseda, Sugawara, Echizen: Quality Text, Robust Vision: The Role of Language in Enhancing Visual Robustness of "
    "Vision-Language Models. ACM MM 2025. arXiv 2507.16257"
)
SIMCLIP = (
    "Hossain, Imteaj: Sim-CLIP: Unsupervised Siamese Adversarial Fine-Tuning for Robust and Semantically-Rich "
    "Vision-Language Models. arXiv 2407.14971"
)
ROBUSTVLM = (
    "Means over 13 zero-shot sets (CIFAR-10, CIFAR-100, STL-10, Cars, Caltech-101, Pets, Flowers, DTD, EuroSAT, "
    "FGVC-Aircraft, PCam, ImageNet-R, ImageNet-Sketch): clean on whole test sets; robust on 1,000 images of each, L∞, "
    "APGD-CE and targeted APGD-DLR (PCam: APGD-CE alone), which is not all of AutoAttack. README and evaluation "
    "scripts of github.com/chs20/RobustVLM. `--protocol robustvlm` is this without PCam."
)
ADDITIONAL = (
    "Zero-shot accuracies that the README of github.com/chs20/RobustVLM gives under 'Additional Models'. It does not "
    "name the sets and the attack there; for its ViT-L/14 they are 13 sets, APGD-CE and targeted APGD-DLR."
)


def _robustvlm(method: str, eps: int, clean: float, robust: tuple[float, float], **more: Any) -> Entry:
    """The ViT-L/14 of RobustVLM."""
    return Entry(
        name=f"{method.lower()}{eps}-vit-l-14",
        repository=f"chs20/{method.lower()}{eps}-clip",
        layout="open_clip",
        base="ViT-L-14/openai",
        architecture="ViT-L-14",
        method=method,
        eps=f"{eps}/255",
        licence="mit",
        paper=FARE if method == "FARE" else TECOA,
        published=(Published(ROBUSTVLM, clean, dict(zip(("2/255", "4/255"), robust, strict=True))),),
        **more,
    )


def _metric(
    method: str, architecture: str, tag: str, theirs: str, clean: float, robust: tuple[float, ...]
) -> Entry:
    """The models of the work on perceptual metrics; theirs: how the repository calls LAION's model they began as."""
    return Entry(
        name=f"{method.lower()}4-{architecture.lower().replace('_', '-')}-laion2b",
        repository=f"chs20/{method}4-{theirs}",
        layout="open_clip",
        base=f"{architecture}/{tag}",
        architecture=architecture,
        method=method,
        eps="4/255",
        licence="mit",
        paper=METRICS,
        published=(
            Published(ADDITIONAL, clean, dict(zip(("1/255", "2/255", "4/255"), robust, strict=True))),
        ),
    )


def _leaf(
    name: str, size: str, tag: str, repository: str, *, text: bool = False, notes: tuple[str, ...] = ()
) -> Entry:
    """The models of LEAF-CLIP; text: with a robust text tower."""
    return Entry(
        name=name,
        repository=f"LEAF-CLIP/{repository}",
        layout="transformers",
        base=f"ViT-{size}-14/{tag}",
        architecture=f"ViT-{size}-14",
        method="LEAF" if text else "FARE",
        eps="2/255",
        towers="image and text" if text else "image",
        licence=None if text else "mit",
        paper=LEAF,
        notes=notes,
    )


def _delta(size: str, pixels: int, *notes: str) -> Entry:
    end = "" if pixels == 224 else f"-{pixels}"
    return Entry(
        name=f"delta-clip-vit-{size.lower()}-14{end}",
        repository=f"zw123/delta_clip_{size.lower()}14_{pixels}",
        layout="open_clip",
        base=None,
        architecture=f"ViT-{size}-14{end}",
        method="ΔCLIP",
        eps=None,
        towers="image",
        trained_on=(),
        licence="cc-by-4.0",
        paper=DELTA,
        notes=(
            *notes,
            "Pretrained adversarially on web data (Recap-DataComp-1B, DataComp-1B, by its card), not finetuned.",
            "The card does not say the radius of the training attack.",
            "Its configuration is said to hold a key of the authors' own open_clip (text_cfg.vocab_path). It is "
            "ignored with a warning, and the tokenizer files beside the weights are used: compare the clean accuracy "
            "first.",
        ),
    )


def _tower(
    name: str, repository: str, file: str, architecture: str, method: str, eps: str, **facts: Any
) -> Entry:
    return Entry(
        name=name,
        repository=repository,
        layout="tower",
        file=file,
        base=f"{architecture}/openai",
        architecture=architecture,
        method=method,
        eps=eps,
        **facts,
    )


LAION_B32 = ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32-laion2B-s34B-b79K")
LAION_B16 = ("ViT-B-16", "laion2b_s34b_b88k", "ViT-B-16-laion2B-s34B-b88K")
LAION_CONVNEXT = (
    "convnext_base_w",
    "laion2b_s13b_b82k_augreg",
    "convnext_base_w-laion2B-s13B-b82K-augreg",
)
TEXT_NOTE = (
    "Its text tower was finetuned with LEAF (k = 1 character, ρ = 50, edits that make no new English words) on "
    "captions of DataComp-small and fits every model of the same base: model.text in a recipe, `start_from` in Python.",
    "Its own card was not at hand: its parts are those of the README of github.com/LIONS-EPFL/LEAF.",
)
UNUSED_PROMPTS = (
    "The file is a whole training checkpoint, with the optimizer's state; visual prompts in it must be empty, as in "
    "TeCoA's code, or it is refused."
)
ENTRIES = (
    _robustvlm("FARE", 2, 67.0, (43.1, 20.5)),
    _robustvlm("FARE", 4, 61.1, (45.9, 32.4), revision="74d66522302f987ec9cfe61d119c24219bb04462"),
    _robustvlm("TeCoA", 2, 60.0, (43.6, 27.0)),
    _robustvlm("TeCoA", 4, 54.2, (42.3, 31.9)),
    _metric("FARE", *LAION_B32, 53.8, (44.4, 35.5, 21.2)),
    _metric("FARE", *LAION_B16, 56.6, (47.7, 39.2, 23.5)),
    _metric("FARE", *LAION_CONVNEXT, 60.2, (52.3, 44.1, 28.4)),
    _metric("TeCoA", *LAION_B32, 46.8, (40.6, 34.5, 23.3)),
    _metric("TeCoA", *LAION_B16, 51.5, (45.0, 38.4, 26.4)),
    _metric("TeCoA", *LAION_CONVNEXT, 56.2, (50.4, 44.1, 31.8)),
    _leaf("fare2-vit-l-14-leaf", "L", "openai", "CLIP-ViT-L-FARE2"),
    _leaf("fare2-vit-h-14", "H", "laion2b_s32b_b79k", "OpenCLIP-ViT-H-FARE2"),
    _leaf(
        "fare2-vit-g-14",
        "g",
        "laion2b_s12b_b42k",
        "OpenCLIP-ViT-g-FARE2",
        notes=(
            "Its card names two bases: laion2B-s12B-b42K in the text, which is taken here, and laion2B-s34B-b88K in "
            "its metadata. Their preprocessing and tokenizer are the same.",
        ),
    ),
    _leaf(
        "leaf-vit-l-14", "L", "openai", "CLIP-ViT-L-rho50-k1-constrained-FARE2", text=True, notes=TEXT_NOTE
    ),
    _leaf(
        "leaf-vit-h-14",
        "H",
        "laion2b_s32b_b79k",
        "OpenCLIP-ViT-H-rho50-k1-constrained-FARE2",
        text=True,
        notes=TEXT_NOTE,
    ),
    _leaf(
        "leaf-vit-g-14",
        "g",
        "laion2b_s12b_b42k",
        "OpenCLIP-ViT-g-rho50-k1-constrained-FARE2",
        text=True,
        notes=TEXT_NOTE,
    ),
    _delta("L", 224),
    _delta("L", 336, "Its card calls it DeltaCLIP-H/14-336, by mistake as it seems."),
    _delta("H", 336),
    _tower(
        "qt-aft4-vit-b-16",
        "futakw/clip-qt-aft",
        "CLIP-ViT-B-16_QTAFT_eps4.pt",
        "ViT-B-16",
        "QT-AFT",
        "4/255",
        licence=None,
        paper=QTAFT,
        notes=(UNUSED_PROMPTS,),
    ),
    _tower(
        "qt-aft4-vit-l-14",
        "futakw/clip-qt-aft",
        "CLIP-ViT-L-14_QTAFT_eps4.pt",
        "ViT-L-14",
        "QT-AFT",
        "4/255",
        licence=None,
        paper=QTAFT,
        notes=(UNUSED_PROMPTS,),
    ),
    _tower(
        "sim-clip2-vit-l-14",
        "hossainzarif19/SimCLIP",
        "simclip2.pt",
        "ViT-L-14",
        "Sim-CLIP",
        "2/255",
        licence="mit",
        paper=SIMCLIP,
    ),
    _tower(
        "sim-clip4-vit-l-14",
        "hossainzarif19/SimCLIP",
        "simclip4.pt",
        "ViT-L-14",
        "Sim-CLIP",
        "4/255",
        licence="mit",
        paper=SIMCLIP,
    ),
)
ZOO: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


def find_entry(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        ValueError: If there is none; with the nearest name.
    """
    if name not in ZOO:
        hint = nearest(name, ZOO) or "; `advflyp models` lists them"
        raise ValueError(f"the zoo has no model '{name}'{hint}")
    return ZOO[name]
