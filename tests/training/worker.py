"""What a process of a several-process test does; also run in the test's own process, for comparison."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from advflyp.training.build import build
from advflyp.training.loop import share_last_batch
from advflyp.training.recipe import read_recipe
from advflyp.training.sharding import whole
from advflyp.training.update import update
from helpers import models_in_float64, siglip_config


def record(asked: dict[str, Any]) -> dict[str, Any]:
    """Some steps of a recipe in float64: per step δ, metrics and gradients; at the end the weights."""
    with models_in_float64():
        run = build(read_recipe(asked["recipe"], asked["overrides"]), Path(asked["out"]))
    if run.method.original is not None:
        # At the first step model and original are the same, and distances between them have no slope.
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in run.method.original.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=noise)
    steps = []
    batches = run.pairs.epoch(0)
    for _ in range(asked["steps"]):
        batch = next(batches)
        share_last_batch(run, len(batch.images))  # as the loop does, where `data.drop_last` is off
        # What is asked for on the host makes an accelerator's wait, and its device is another than that of the losses.
        with mock.patch.object(torch.Tensor, "cpu", side_effect=AssertionError("a step copies to the host")):
            updated = update(run, batch)
        metrics = {name: value.clone() for name, value in updated.metrics.items()}
        names = {id(p): name for name, p in run.model.named_parameters()}
        gradients = {names[id(p)]: whole(p.grad).clone() for p in run.parameters if p.grad is not None}
        delta = updated.images_adv - updated.batch.images
        steps.append({"delta": delta, "metrics": metrics, "gradients": gradients, "rows": run.share})
        run.state.step += 1
    return {"steps": steps, "weights": whole(run.model.state_dict()), "run": run}


def main(file: Path) -> None:
    siglip_config()  # makes its small tower known to timm
    runs = json.loads(file.read_text())
    last = None
    for asked in runs:
        found = record(asked)
        last = found.pop("run")
        rank = last.ranks.rank
        for step in found["steps"]:
            step["rows"] = [step["rows"].first, step["rows"].last]
        folder = Path(asked["out"])
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(found, folder / f"{rank}.pt")
    if last is not None:
        last.close()
