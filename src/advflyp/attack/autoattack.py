"""AutoAttack (Croce & Hein 2020): an ensemble of attacks without parameters to tune."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from advflyp.attack.apgd import apgd, apgd_targeted
from advflyp.attack.fab import fab_targeted
from advflyp.attack.losses import count_targets, cross_entropy, dlr
from advflyp.attack.names import RAND as RAND
from advflyp.attack.names import STANDARD as STANDARD
from advflyp.attack.square import square
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat, check_pixels
from advflyp.attack.victim import Victim

# Each is called with (victim, images, labels, threat, streams=…), returns an image that fools the victim or else the
# image itself, and has the parameters of the published ensemble as its defaults.
MEMBERS: dict[str, Callable[..., Tensor]] = {
    "apgd-ce": partial(apgd, loss=cross_entropy),
    "apgd-dlr": partial(apgd, loss=dlr),
    "apgd-t": apgd_targeted,
    "fab-t": fab_targeted,
    "square": square,
    "apgd-ce-eot20": partial(apgd, loss=cross_entropy, eot=20),
    "apgd-dlr-eot20": partial(apgd, loss=dlr, eot=20),
}


def autoattack(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    members: Sequence[str] = STANDARD,
) -> Tensor:
    """The members one after the other, each on the images that still stand.

    images:  (N, 3, H, W) float32 or float64 pixels in [0, 1]
    labels:  (N,) int64
    seed:    of all random numbers
    index:   (N,) int64, the images' places in their set: the result for an image depends on the seed and its place,
             not on the batch. By default 0 … N − 1.
    members: names of `MEMBERS`; a member alone finds what it finds as the first of an ensemble
    Returns (N, 3, H, W) inside `threat`, detached: an image that fools `victim`, or else the image itself.
    """
    images = images.detach()
    check_pixels(images)
    index = torch.arange(len(images)) if index is None else index
    index = index.to(images.device)
    result = images.clone()
    stands = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for name in members:
        if not stands.any():
            break
        streams = Streams(len(MEMBERS) * seed + list(MEMBERS).index(name), index[stands])
        found = MEMBERS[name](victim, images[stands], labels[stands], threat, streams=streams)
        result[stands] = found
        stands = (result == images).flatten(1).all(1)
    return result


def arguments(name: str, classes: int) -> dict[str, str | int | float | bool]:
    """Every parameter of a member as it runs on so many classes, for results."""
    parameters = inspect.signature(MEMBERS[name]).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    if "loss" in values:
        values["loss"] = values["loss"].__name__
    if "targets" in values:
        values["targets"] = count_targets(classes, values["targets"])
    return values
