"""Weight interpolation: between the original and a robust model it trades clean against robust accuracy."""

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor

from advflyp.data.lineage import united
from advflyp.dtypes import in_float64
from advflyp.model.clip import CLIP
from advflyp.model.folder import card_of, config_sha256

# The entries of a card that say what finetuning took.
COST = ("pairs_seen", "pflops")


def mix(models: Sequence[CLIP], weights: Sequence[float]) -> CLIP:
    """θ = Σ wᵢ·θᵢ over all weights and batch-norm statistics; integer counters are the last model's.

    The card names the data of every model with a weight.

    Args:
        models: Models of one architecture.
        weights: One per model; they sum to 1.

    Raises:
        ValueError: If the architectures differ, or the weights are not one for each model or do not sum to 1.
    """
    if len(models) != len(weights) or not abs(sum(weights) - 1) <= 1e-6:
        raise ValueError(
            f"mixing takes one weight for each model, which sum to 1; there are {len(models)} models, and the weights "
            f"{', '.join(map(str, weights))}"
        )
    states = [model.state_dict() for model in models]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    for model, shape in zip(models, shapes, strict=True):
        if shape != shapes[0]:
            names = {
                name for name in shape.keys() | shapes[0].keys() if shape.get(name) != shapes[0].get(name)
            }
            raise ValueError(
                f"{models[0].name} and {model.name} have different architectures ({min(names)} differs); "
                "only weights of models with the same origin can be mixed"
            )

    def mixed(name: str) -> Tensor:
        values = [state[name] for state in states]
        if not values[-1].is_floating_point():
            return values[-1]
        # In float64, so that a weight of 1 reproduces a model bit for bit.
        total = sum(
            weight * in_float64(value) for weight, value in zip(weights, values, strict=True) if weight
        )
        return total.to(values[-1])  # type: ignore[union-attr]

    result = deepcopy(models[-1])
    result.load_state_dict({name: mixed(name) for name in states[0]})
    result.card = united(*(card_of(model) for model, weight in zip(models, weights, strict=True) if weight))
    return result


def interpolate(original: CLIP, robust: CLIP, alpha: float) -> CLIP:
    """(1 − α)·θ_original + α·θ_robust; ValueError for other weights or configurations, or α outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 (the original) and 1 (the robust model), not {alpha:g}")
    result = mix([original, robust], [1 - alpha, alpha])
    if config_sha256(original) != config_sha256(robust):
        raise ValueError(
            f"{original.name} and {robust.name} differ in their activations, preprocessing or tokenizer; only weights "
            "of models with the same origin can be mixed"
        )
    cost = card_of(robust if alpha else original)
    result.card = {**card_of(result), **{key: cost[key] for key in COST if key in cost}}
    return result
