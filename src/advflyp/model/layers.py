"""Replacements for layers of open_clip's towers, with the same parameters, names and results."""

from functools import cache
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in at least float32, whatever autocast or torch's settings say.

    Cast to bfloat16, normalised pixels lose part of a perturbation of 1/255 to rounding (14 % of its norm on random
    8-bit pixels), so the attack would optimise something other than what the model sees. TF32 loses 2 %, so if torch
    is set to round the factors of float32 products, this layer computes in float64. Turning that setting off during
    the forward pass would also affect other threads, would not cover the backward pass, and could not be undone
    exactly: an inherited setting reads like an explicit one.
    """

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        # As a convolution of images in channels-last layout, its backward pass crashes torch 2.15 on the CPU.
        single = self.kernel_size == (1, 1) and self.padding in ((0, 0), "valid") and self.groups == 1
        if single:
            input = input[..., :: self.stride[0], :: self.stride[1]]
        tiles = single or self._tiles(input)
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
    """Attention whose input projections read contiguous rows.

    PyTorch's own transposes batch-first input. Multiplying the result by a weight that needs no gradient copies the
    weight for each position of the sequence (50 times for a ViT-B/32), which makes an attack on a frozen model slow:
    3 times as slow in bfloat16 on a CPU.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        ours = key is value and how == {"need_weights": False}
        # Another width of keys has no joint weight, and without a bias there is nothing to split.
        ours = ours and (query is key or (self.in_proj_weight is not None and self.in_proj_bias is not None))
        if not ours or not self.batch_first or query.dim() != 3:
            return super().forward(query, key, value, attn_mask=attn_mask, **how)
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k, v = self._heads(F.linear(query, weight, bias))
        else:
            parts = [self.embed_dim, 2 * self.embed_dim]
            (of_query, of_key), (q_bias, k_bias) = weight.split(parts), bias.split(parts)
            (q,) = self._heads(F.linear(query, of_query, q_bias))
            k, v = self._heads(F.linear(key, of_key, k_bias))
        if attn_mask is not None and attn_mask.dim() == 3:  # CoCa's: (N · heads, L, L)
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(found.transpose(1, 2).reshape(query.shape)), None

    def _heads(self, projected: Tensor) -> list[Tensor]:
        """(N, L, n · width) → n tensors of shape (N, heads, L, width / heads)."""
        heads = projected.unflatten(2, (-1, self.num_heads, self.head_dim))
        # Indexing q, k and v separately would create three zero-filled gradients of the whole and add them. Permuting
        # before unbinding would copy the stacked gradients once more.
        return [head.transpose(1, 2) for head in heads.unbind(2)]


class ClassTokenTower(VisionTransformer):
    """A ViT that computes only the class token in its last block, as long as nothing else is read.

    This leaves out five sixths of that block's products, 7 % of the arithmetic of a ViT-B/32, forward and backward.
    """

    def forward(self, x: Tensor, every_token: bool = False) -> Any:
        """(N, 3, H, W) → (N, d); with `every_token` open_clip's own forward pass."""
        if every_token or self.output_tokens or self.attn_pool is not None or self.pool_type != "tok":
            return super().forward(x)
        pooled, _ = self._pool(self.transformer(self._embeds(x), first=1))
        return pooled if self.proj is None else pooled @ self.proj


class ClassTokenTransformer(Transformer):
    """The blocks of a `ClassTokenTower`."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, first: int | None = None) -> Tensor:
        """(N, L, width) → (N, L, width), or only the `first` tokens."""
        blocks = list(self.resblocks)
        if first is None or not blocks or not isinstance(blocks[-1], LastBlock):
            return super().forward(x, attn_mask)

        def through(block: nn.Module, *tokens: Tensor) -> Tensor:
            if self.grad_checkpointing:
                return checkpoint(block, *tokens, use_reentrant=False)
            return block(*tokens)

        for block in blocks[:-1]:
            x = through(block, x)
        return through(blocks[-1], x[:, :first], x)


class LastBlock(ResidualAttentionBlock):
    """A block that can compute some of its tokens alone."""

    def forward(  # type: ignore[override]
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """(N, n, width): the block's output for the tokens `q_x` (N, n, width), which are among `k_x` (N, L, width)."""
        if k_x is None:
            return super().forward(q_x, attn_mask=attn_mask)
        keys = self.ln_1(k_x)
        x = q_x + self.ls_1(self.attention(self.ln_1(q_x), keys, keys))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class AttentionPool(AttentionPool2d):
    """A ResNet's attention pooling, that computes only the output that it returns, that of the mean.

    open_clip's class computes one for every place, 7 % of the arithmetic of `mini` and 5 % of an RN50's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, d)."""
        places = x.flatten(2).transpose(1, 2)
        places = torch.cat([places.mean(1, keepdim=True), places], dim=1)
        places = places + self.positional_embedding.to(x.dtype)
        projected = (self.q_proj(places[:, :1]), self.k_proj(places), self.v_proj(places))
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in projected)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))


# Ours → what open_clip builds.
ORIGINALS: dict[type[nn.Module], type[nn.Module]] = {
    AttentionPool: AttentionPool2d,
    ClassTokenTower: VisionTransformer,
    ClassTokenTransformer: Transformer,
    Float32Conv2d: nn.Conv2d,
    LastBlock: ResidualAttentionBlock,
    SelfAttention: nn.MultiheadAttention,
}


@cache
def keeping_pixels(kind: Any) -> Any:
    """A subclass of a layer that reads pixels and does more than multiply by its weights, such as padding the image or
    standardising the weights first: autocast does not round its pixels. Those of torch's settings it follows.
    """

    class Kept(kind):
        def forward(self, input: Tensor) -> Tensor:
            with torch.autocast(input.device.type, enabled=False):
                return super().forward(input.to(self.weight.dtype))

    ORIGINALS[Kept] = kind
    return Kept


def patch_layers(net: nn.Module, visual: nn.Module) -> None:
    """Turn layers of an open_clip model into those of this module.

    Only the modules' `__class__` changes, so parameter names stay open_clip's.
    """
    for module in visual.modules():
        # Those that read pixels. Subclasses compute something else; the user's own stay as they are.
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            if type(module) is nn.Conv2d:
                module.__class__ = Float32Conv2d
            elif type(module).__module__.startswith("timm."):
                module.__class__ = keeping_pixels(type(module))
    for module in net.modules():
        # open_clip uses it without dropout, extra keys or inputs of different widths.
        if type(module) is nn.MultiheadAttention:
            module.__class__ = SelfAttention
        if type(module) is AttentionPool2d:
            module.__class__ = AttentionPool
    if type(visual) is VisionTransformer:
        visual.__class__ = ClassTokenTower
        visual.transformer.__class__ = ClassTokenTransformer
        for block in visual.transformer.resblocks[-1:]:
            if type(block) is ResidualAttentionBlock:
                block.__class__ = LastBlock
