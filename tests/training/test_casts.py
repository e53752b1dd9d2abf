"""What a step in bf16 asks of the device, by counts: they hold on a GPU, which waits for its host to launch kernels."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from advflyp.model.folder import save_model
from advflyp.training import build as build_module
from advflyp.training.build import TrainingRun, build
from advflyp.training.recipe import read_recipe
from advflyp.training.state import load_state_dict, state_dict
from advflyp.training.update import update
from devices.recording import Dispatched, Recordings
from helpers import TEXT, VISION, small_model

Open = Callable[..., TrainingRun]


@pytest.fixture
def open_run(recipe: Path, tmp_path: Path) -> Open:
    def open_one(name: str, **keys: object) -> TrainingRun:
        run = build(read_recipe(recipe, {"train.precision": "bf16", **keys}), tmp_path / name)
        run.meter.counts = False
        return run

    return open_one


@pytest.fixture
def without_copies(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, runs are opened whose weights autocast alone casts."""

    def leave_out() -> None:
        monkeypatch.setattr(build_module, "freeze_in_bf16", lambda model: None)
        monkeypatch.setattr(build_module, "product_weights", lambda model: [])

    return leave_out


def second_step(run: TrainingRun, recordings: Recordings) -> Dispatched:
    """The operations of a step after the first, which encodes the captions; a replay counts as one kernel."""
    batch = next(run.pairs.epoch(0))
    update(run, batch)
    run.state.step += 1
    before = recordings.replays.kernels - recordings.replayed
    with Dispatched() as found:
        update(run, batch)
    found.kernels -= recordings.replays.kernels - recordings.replayed - before
    run.close()
    return found


def test_casts_of_a_step(
    open_run: Open, without_copies: Callable[[], None], recordings_of_a_processor: Recordings
) -> None:
    """The attack's two forward passes and the original's cast no weight: 17 of two blocks and the projection, two of
    them, the input projection and its bias of the last block, in two parts.
    """
    counts = second_step(open_run("copied"), recordings_of_a_processor).counts
    without_copies()
    plain = second_step(open_run("plain"), recordings_of_a_processor).counts
    assert plain["_to_copy"] - counts["_to_copy"] == 3 * 19
    assert counts["_foreach_copy_"] - plain["_foreach_copy_"] == 1
    assert sum(plain.values()) - sum(counts.values()) == 3 * 19 - 1


# AdvFLYP_full, PGD-2, SGD → kernels of a step beside those of blocks, and of each block.
KERNELS = {"bf16": (393, 117), "fp32": (365, 81)}
# With `train.graphs`: those that are launched one by one, and the replays.
LAUNCHES = {"bf16": (334, 51), "fp32": (321, 29)}


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", KERNELS)
def test_kernels_of_a_step(
    precision: str, graphs: bool, open_run: Open, tmp_path: Path, recordings_of_a_processor: Recordings
) -> None:
    """More of them would have a GPU wait for its host."""
    found = []
    for layers in (1, 3):
        config = {"embed_dim": 24, "vision_cfg": {**VISION["vit"], "layers": layers}, "text_cfg": TEXT}
        save_model(small_model(config), tmp_path / f"model-{layers}", {})
        keys = {
            "model.name": str(tmp_path / f"model-{layers}"),
            "optim.name": "sgd",
            "train.deterministic": False,
            "train.graphs": graphs,
        }
        run = open_run(str(layers), **keys, **{"train.precision": precision})
        found.append(second_step(run, recordings_of_a_processor).kernels)
    in_a_block = (found[1] - found[0]) / 2
    assert (found[0] - in_a_block, in_a_block) == (LAUNCHES if graphs else KERNELS)[precision]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"train.micro_batch": 3},
        {"train.activation_checkpointing": True},
        {"train.unfreeze": "all"},
        {"train.unfreeze": "vision[:1]"},
        {"attack.steps": 1, "attack.start": "zero", "attack.share_clean_forward": True},
    ],
    ids=str,
)
def test_a_run_stays_the_same_to_the_last_bit(
    keys: dict[str, object], open_run: Open, without_copies: Callable[[], None]
) -> None:
    def trained(name: str) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        run = open_run(name, **keys)
        losses = []
        for batch in run.pairs.epoch(0):
            losses.append(update(run, batch).metrics["loss"])
            run.state.step += 1
        run.close()
        return losses, run.model.state_dict()

    losses, weights = trained("copied")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    without_copies()
    plain_losses, plain_weights = trained("plain")
    assert len(losses) == 4 and all(torch.equal(*pair) for pair in zip(losses, plain_losses, strict=True))
    assert all(torch.equal(weights[name], plain_weights[name]) for name in plain_weights)


def test_a_checkpoint_with_a_float32_original_is_resumed(open_run: Open) -> None:
    """Versions before this one wrote them."""
    run = open_run("copied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "freeze_in_bf16", lambda model: None)
        before = open_run("before", **{"train.seed": 1})
    assert before.method.original is not None
    for parameter in before.method.original.parameters():
        parameter *= 1.01
    state = deepcopy(state_dict(before, 0)) | {"recipe": run.recipe.toml()}
    load_state_dict(run, state)
    ours, theirs = (one.method.original for one in (run, before))
    assert ours is not None and theirs is not None
    images = torch.rand(2, 3, *ours.image_size)
    assert torch.equal(ours.encode_image(images), theirs.encode_image(images))
    assert {str(w.dtype) for w in theirs.parameters()} == {"torch.float32"}
    run.close()
    before.close()


@pytest.mark.parametrize("keys", [{"train.compile": True}, {"train.precision": "fp32"}], ids=str)
def test_weights_that_are_not_copied(keys: dict[str, object], open_run: Open) -> None:
    """A compiled tower has the casts in its graphs, and one in float32 has none."""
    run = open_run("run", **keys)
    assert run.casts.places == []
    run.close()
