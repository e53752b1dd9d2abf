"""Adaptive attacks (Tramèr et al. 2020): the objective of an attacker who knows how the model was defended,

    loss(z, y) + λ Σ_k term_k(x + δ),

with `loss` a function of the logits and each term a quantity that a defence keeps small. Custom terms are functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advflyp.attack.victim import Victim
from advflyp.config import suggest
from advflyp.identity import defined, source_sha256

# (candidates (M, 3, H, W), rows (M,) or a slice: the positions of their originals) → (M,)
Bound = Callable[[Tensor, Tensor | slice], Tensor]
# (victim, images (N, 3, H, W), labels (N,)) → the term
Term = Callable[[Victim, Tensor, Tensor], Bound]


def feature_term(victim: Victim, images: Tensor, labels: Tensor) -> Bound:
    """‖f(x + δ) − f(x)‖₂, which AdvFLYP's L_feat keeps small."""
    encoder = victim.encoder
    with torch.no_grad():
        clean = encoder.encode_tokens(images, False)[:, 0]
    return lambda candidates, rows: torch.linalg.vector_norm(
        encoder.encode_tokens(candidates, False)[:, 0] - clean[rows], dim=1
    )


def attention_term(victim: Victim, images: Tensor, labels: Tensor) -> Bound:
    """TGA-ZSR's ‖A(x + δ) − A(x)‖₂; A: cosines of patches with the true class's text, min–max normalised."""
    encoder = victim.encoder
    texts = encoder.weights[labels]

    def attention(some: Tensor, texts: Tensor) -> Tensor:
        cosines = torch.einsum("nld,nd->nl", encoder.encode_tokens(some, True)[:, 1:], texts)
        lowest, highest = cosines.amin(1, keepdim=True), cosines.amax(1, keepdim=True)
        return (cosines - lowest) / (highest - lowest).clamp_min(1e-6)

    with torch.no_grad():
        clean = attention(images, texts)
    return lambda candidates, rows: torch.linalg.vector_norm(
        attention(candidates, texts[rows]) - clean[rows], dim=1
    )


TERMS: dict[str, Term] = {"feature": feature_term, "attention": attention_term}


@dataclass(frozen=True, kw_only=True)
class DefenceTerms:
    """Terms added to the loss of `PGD` or `APGD`: `PGD(loss="lse", against=DefenceTerms(terms=("attention",)))`.

    Args:
        terms: Names in `TERMS`, or functions of the same signature.
        weight: λ.
    """

    terms: tuple[str | Term, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        terms = (self.terms,) if isinstance(self.terms, str) else tuple(self.terms)
        object.__setattr__(self, "terms", terms)
        if not self.terms:
            raise ValueError(f"name at least one term: {', '.join(TERMS)}, or a function")
        for term in self.terms:
            if isinstance(term, str) and term not in TERMS:
                raise ValueError(f"there is no term '{term}'{suggest(term, TERMS)}")
        object.__setattr__(self, "weight", float(self.weight))

    def bind(self, victim: Victim, images: Tensor, labels: Tensor) -> Bound:
        """λ Σ_k term_k for these images."""
        functions = [TERMS[term] if isinstance(term, str) else term for term in self.terms]
        bound = [function(victim, images, labels) for function in functions]
        return lambda candidates, rows: (
            self.weight * torch.stack([term(candidates, rows) for term in bound]).sum(0)
        )

    @property
    def needs_patches(self) -> bool:
        """As of `Attack`."""
        return "attention" in self.terms

    @property
    def name(self) -> str:
        """Their name in results."""
        weight = "" if self.weight == 1 else f"{self.weight:g}"
        return "-".join(map(_name, self.terms)) + weight

    def arguments(self) -> dict[str, Any]:
        """Every parameter that changes the outcome, as results record them."""
        own = {_name(term): source_sha256(term) for term in self.terms if not isinstance(term, str)}
        return {"terms": self.name, "weight": self.weight, **own}


def _name(term: str | Term) -> str:
    return term if isinstance(term, str) else defined(term).__name__
