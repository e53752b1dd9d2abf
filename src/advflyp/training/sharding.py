"""An image tower whose weights, gradients and optimiser state are sharded over the ranks (FSDP2).

For towers whose training state does not fit on one device. Frozen parts (the original, the text tower) stay whole on
every rank, as does the copy that validation and checkpoints use.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

# A list of modules with a smaller fraction of the tower's weights than this does not hold its blocks.
SHARE_OF_BLOCKS = 0.1


def shard(tower: nn.Module, device: torch.device, processes: int) -> None:
    """Shard the tower's parameters, in place; each of its blocks is gathered only while it computes."""
    tower.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload], of channels-last it knows nothing
    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks(tower):
        fully_shard(block, mesh=mesh)
    fully_shard(tower, mesh=mesh)


def blocks(tower: nn.Module) -> list[nn.Module]:
    """The elements of the tower's outermost lists of modules that hold a good part of its weights."""
    total = _size(tower)
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            is_list = isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1
            if is_list and _size(child) > SHARE_OF_BLOCKS * total:
                found.extend(child.children())
            else:
                look(child)

    look(tower)
    return found


def unsharded(value: Tensor) -> Tensor:
    """Gather a sharded tensor on its device, without waiting for the device; all ranks must call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole(value: Any) -> Any:
    """Gather every sharded tensor of a state on the CPU; all ranks must call this together."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor().cpu(), value)


def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a module's state as gathered by `whole`, and shard it again."""
    module.load_state_dict({key: _split_as(state[key], old) for key, old in module.state_dict().items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's state as gathered by `whole`, and shard it again; parameters are numbered group by group."""
    numbered: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    split = {
        number: {name: _split_as(value, numbered[number]) for name, value in slots.items()}
        for number, slots in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": split})


def _split_as(value: Tensor, like: Tensor) -> Tensor:
    """`value`, sharded if `like` is; not a parameter's step counter, which has another shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
