"""Replacements for layers of open_clip's towers, with the same parameters, names and results."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in at least float32, whatever autocast or torch's settings say.

    Cast to bfloat16, normalised pixels lose part of a perturbation of 1/255 to rounding (14 % of its norm on random
    8-bit pixels), so the attack would optimise something other than what the model sees. TF32 loses 2 %, so if torch
    is set to round the factors of float32 products, this layer computes in float64. Turning that setting off during
    the forward pass would also affect other threads, would not cover the backward pass, and could not be undone
    exactly: an inherited setting reads like an explicit one.
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
        """Whether the kernel tiles the image, as in a ViT; the convolution is then a matrix product."""
        height, width = images.shape[-2:]
        return (
            self.stride == self.kernel_size
            and self.padding in ((0, 0), "valid")
            and self.dilation == (1, 1)
            and self.groups == 1
            and not (height % self.kernel_size[0] or width % self.kernel_size[1])
        )

    def _of_patches(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution as a matrix product; on a CPU, the gradient of the pixels takes a tenth of the time."""
        rows, columns = self.kernel_size
        number, _, height, width = images.shape
        # A view up to `flatten`, which copies from either memory layout of the pixels.
        patches = images.permute(0, 2, 3, 1)
        patches = patches.reshape(number, height // rows, rows, width // columns, columns, -1)
        patches = patches.permute(0, 1, 3, 2, 4, 5).flatten(3)
        kernel = weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, kernel, bias).permute(0, 3, 1, 2)

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution in channels-last layout, which the following layers keep."""
        return self._conv_forward(images.contiguous(memory_format=torch.channels_last), weight, bias)


@torch.compiler.assume_constant_result
def rounds_products(device: str, *, convolution: bool) -> bool:
    """Whether torch is set to round the factors of float32 products on this type of device, to TF32 or bfloat16.

    It reads the settings introduced in torch 2.9: the older ones (`allow_tf32`) set these too, but raise when read
    after the new ones were used. A compiled tower keeps the answer from when it was compiled.
    """
    backends: Any = torch.backends
    settings = {
        "cuda": (backends.cuda.matmul, backends.cudnn.conv),
        "cpu": (backends.mkldnn.matmul, backends.mkldnn.conv),
    }
    return device in settings and settings[device][convolution].fp32_precision not in ("none", "ieee")


class SelfAttention(nn.MultiheadAttention):
    """Self-attention whose input projection reads contiguous rows.

    PyTorch's own transposes batch-first input. Multiplying the result by a weight that needs no gradient copies the
    weight for each position of the sequence (50 times for a ViT-B/32), which makes an attack on a frozen model slow:
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
        # Indexing q, k and v separately would create three zero-filled gradients of the whole and add them. Permuting
        # before unbinding would copy the stacked gradients once more.
        q, k, v = (head.transpose(1, 2) for head in heads.unbind(2))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(found.transpose(1, 2).reshape(number, places, width)), None


def patch_layers(net: nn.Module, visual: nn.Module) -> None:
    """Turn layers of an open_clip model into those of this module.

    Only the modules' `__class__` changes, so parameter names stay open_clip's.
    """
    first = next(m for m in visual.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    first.__class__ = Float32Conv2d
    for module in net.modules():
        # open_clip uses it without dropout, extra keys or inputs of different widths.
        if type(module) is nn.MultiheadAttention:
            module.__class__ = SelfAttention
