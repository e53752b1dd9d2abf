"""Adversarially robust CLIP-like models: AdvFLYP and its baselines, attacks and robustness evaluation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from advflyp.__about__ import __version__

if TYPE_CHECKING:
    from advflyp.attack.adaptive import DefenceTerms as DefenceTerms
    from advflyp.attack.apgd import APGD as APGD
    from advflyp.attack.apgd import TargetedAPGD as TargetedAPGD
    from advflyp.attack.autoattack import AutoAttack as AutoAttack
    from advflyp.attack.elsewhere import CrossPrompt as CrossPrompt
    from advflyp.attack.elsewhere import Transfer as Transfer
    from advflyp.attack.encoder import EncoderPGD as EncoderPGD
    from advflyp.attack.fab import FAB as FAB
    from advflyp.attack.pgd import CW as CW
    from advflyp.attack.pgd import FGSM as FGSM
    from advflyp.attack.pgd import PGD as PGD
    from advflyp.attack.pgd import pgd as pgd
    from advflyp.attack.square import Square as Square
    from advflyp.attack.text import edit_texts as edit_texts
    from advflyp.attack.threat import Threat as Threat
    from advflyp.attack.typographic import Typographic as Typographic
    from advflyp.attack.universal import universal_perturbation as universal_perturbation
    from advflyp.data.sets.labelled import LabelledSet as LabelledSet
    from advflyp.data.sets.labelled import load_set as load_set
    from advflyp.evaluation.suite import evaluate as evaluate
    from advflyp.method.advflyp import clip_loss as clip_loss
    from advflyp.method.regularisers import feature_deviation as feature_deviation
    from advflyp.method.regularisers import logit_divergence as logit_divergence
    from advflyp.model.clip import CLIP as CLIP
    from advflyp.model.interop.export import export_model as export_model
    from advflyp.model.load import load_model as load_model
    from advflyp.training.loop import train as train
    from advflyp.use.attack_image import attack_image as attack_image
    from advflyp.use.predict import predict as predict

# Imported on first use: torch alone takes seconds, and `advflyp --help` needs none of it.
_HOME = {
    "CLIP": "advflyp.model.clip",
    "LabelledSet": "advflyp.data.sets.labelled",
    "APGD": "advflyp.attack.apgd",
    "AutoAttack": "advflyp.attack.autoattack",
    "CW": "advflyp.attack.pgd",
    "CrossPrompt": "advflyp.attack.elsewhere",
    "Transfer": "advflyp.attack.elsewhere",
    "Typographic": "advflyp.attack.typographic",
    "edit_texts": "advflyp.attack.text",
    "universal_perturbation": "advflyp.attack.universal",
    "DefenceTerms": "advflyp.attack.adaptive",
    "EncoderPGD": "advflyp.attack.encoder",
    "FAB": "advflyp.attack.fab",
    "FGSM": "advflyp.attack.pgd",
    "PGD": "advflyp.attack.pgd",
    "Square": "advflyp.attack.square",
    "TargetedAPGD": "advflyp.attack.apgd",
    "Threat": "advflyp.attack.threat",
    "attack_image": "advflyp.use.attack_image",
    "clip_loss": "advflyp.method.advflyp",
    "evaluate": "advflyp.evaluation.suite",
    "export_model": "advflyp.model.interop.export",
    "feature_deviation": "advflyp.method.regularisers",
    "load_model": "advflyp.model.load",
    "load_set": "advflyp.data.sets.labelled",
    "logit_divergence": "advflyp.method.regularisers",
    "pgd": "advflyp.attack.pgd",
    "predict": "advflyp.use.predict",
    "train": "advflyp.training.loop",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'advflyp' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
