"""Layers of open_clip's towers, computed in another way: the same parameters, names and results."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 at least, whatever autocast or torch's settings say.

    Cast to bfloat16, normalised pixels lose a perturbation of 1/255 in rounding (14 % of its norm on random
    8-bit pixels), so the attack would optimise something other than what the model sees. TF32 loses 2 %: where torch
    is set to round the factors of float32 products, this layer computes in float64. To turn that setting off for the
    time of a forward would turn it off for other threads too, would not reach the backward, and could not be undone
    exactly: a setting that was inherited reads as one of its own.
    """

    def forward(self, input: Tensor) -> Tensor:
        kind, tiles = input.device.type, self._tiles(input)
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        if rounds_products(kind, convolution=not tiles):
            exact = torch.float64
        with torch.autocast(kind, enabled=False):
            bias = None if self.bias is None else self.bias.to(exact)
            compute = self._of_patches if tiles else self._convolve
            return compute(input.to(exact), self.weight.to(exact), bias).to(self.weight.dtype)

    def _tiles(self, images: Tensor) -> bool:
        """Whether the kernel lies beside itself, as a ViT's: then it is a matrix."""
        height, width = images.shape[-2:]
        return (
            self.stride == self.kernel_size
            and self.padding in ((0, 0), "valid")
            and self.dilation == (1, 1)
            and self.groups == 1
            and not (height % self.kernel_size[0] or width % self.kernel_size[1])
        )

    def _of_patches(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A product with a matrix: its gradient by the pixels takes a tenth of the convolution's time on a CPU."""
        rows, columns = self.kernel_size
        number, _, height, width = images.shape
        # A view; the copy comes with `flatten`, from either layout of the pixels.
        patches = images.permute(0, 2, 3, 1)
        patches = patches.reshape(number, height // rows, rows, width // columns, columns, -1)
        patches = patches.permute(0, 1, 3, 2, 4, 5).flatten(3)
        kernel = weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, kernel, bias).permute(0, 3, 1, 2)

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """In the layout of convolutional towers, which the layers after this one keep."""
        return self._conv_forward(images.contiguous(memory_format=torch.channels_last), weight, bias)


@torch.compiler.assume_constant_result
def rounds_products(device: str, *, convolution: bool) -> bool:
    """Whether torch is set to round the factors of float32 products on this type of device, to TF32 or bfloat16.

    It asks by the names of torch 2.9: the older ones (`allow_tf32`) set these too, and raise when they are read after
    somebody has used the new ones. A compiled tower keeps the answer of the time at which it was compiled.
    """
    backends: Any = torch.backends
    settings = {
        "cuda": (backends.cuda.matmul, backends.cudnn.conv),
        "cpu": (backends.mkldnn.matmul, backends.mkldnn.conv),
    }
    return device in settings and settings[device][convolution].fp32_precision not in ("none", "ieee")


class SelfAttention(nn.MultiheadAttention):
    """Attention of a sequence to itself, whose projection reads contiguous rows.

    PyTorch's own transposes a batch that comes first. A product of that with a weight that needs no gradient copies
    the weight for each place of the sequence (50 times for a ViT-B/32), which makes an attack on a frozen model slow:
    3 times as slow in bfloat16 on a CPU.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        alone = key is query and value is query and how == {"need_weights": False}
        if not alone or not self.batch_first or query.dim() != 3:
            return super().forward(query, key, value, attn_mask=attn_mask, **how)
        number, places, width = query.shape
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = projected.view(number, places, 3, self.num_heads, self.head_dim)
        # Indexed one by one, each would fill a gradient of all three with zeros, and these would be added. Permuted
        # before they are unbound, their gradients would be copied once more after they are stacked.
        q, k, v = (head.transpose(1, 2) for head in heads.unbind(2))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(found.transpose(1, 2).reshape(number, places, width)), None


def patch_layers(net: nn.Module, visual: nn.Module) -> None:
    """Give the layers of an open_clip model the classes of this module.

    The class, not the module, is exchanged, so that parameter names stay open_clip's.
    """
    first = next(m for m in visual.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    first.__class__ = Float32Conv2d
    for module in net.modules():
        # open_clip uses it without dropout, additional keys or inputs of several widths.
        if type(module) is nn.MultiheadAttention:
            module.__class__ = SelfAttention
