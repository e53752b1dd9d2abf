"""What CUDA does otherwise than a CPU, as tables of operations (names in `torch.ops.aten`)."""

import torch

# The host needs a number or a shape that is computed on the device, and waits for it.
SYNCHRONISING = {
    "_local_scalar_dense": "a number is read: item(), float(), int(), bool()",
    "_unique2": "the number of different values is read",
    "bincount": "the number of bins is read",
    "equal": "whether tensors are equal is read",
    "isin": "the number of different values may be read",
    "masked_select": "the number of hits is read",
    "multinomial": "whether the weights are valid is read",
    "nonzero": "the number of hits is read",
    "repeat_interleave": "the sum of the repeats is read",
    "unique_consecutive": "the number of different values is read",
    "unique_dim": "the number of different values is read",
}

INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}

# Beside the pointwise operations, those that take a scalar tensor of the host among tensors of the device.
TAKES_HOST_SCALARS = {
    "_foreach_add_", "_foreach_div_", "_foreach_mul_", "_fused_adamw_", "_fused_sgd_", "fill", "fill_",
    "masked_fill", "masked_fill_",
}  # fmt: skip

# Refused under torch.use_deterministic_algorithms(True), according to its documentation.
NOT_DETERMINISTIC = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_upsample_bicubic2d_aa_backward",
    "_upsample_bilinear2d_aa_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc", "max_pool3d_with_indices_backward",
    "nll_loss2d_forward", "put_", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "scatter_reduce", "scatter_reduce_", "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward", "upsample_linear1d_backward", "upsample_trilinear3d_backward",
}  # fmt: skip

# Under autocast (ATen/autocast_mode.h): computed in the lower precision, …
AUTOCAST_LOWER = (
    "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d", "conv2d", "conv3d", "convolution",
    "einsum", "linalg_multi_dot", "linalg_vecdot", "linear", "matmul", "mm", "mv", "prelu",
    "scaled_dot_product_attention",
)  # fmt: skip
# … or in float32. A CPU's rules differ: there, for one, layer_norm computes in the type it is given.
AUTOCAST_FLOAT32 = (
    "acos", "asin", "binary_cross_entropy_with_logits", "cdist", "cosh", "cosine_embedding_loss", "cosine_similarity",
    "cross_entropy_loss", "cumprod", "cumsum", "dist", "erfinv", "exp", "expm1", "group_norm", "huber_loss", "kl_div",
    "l1_loss", "layer_norm", "linalg_matrix_norm", "linalg_vector_norm", "log", "log10", "log1p", "log2",
    "log_softmax.int", "logsumexp", "mse_loss", "native_layer_norm", "nll_loss", "norm.Scalar", "norm.ScalarOpt_dim",
    "pow.Scalar", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "prod", "prod.dim_int", "reciprocal", "renorm", "rsqrt",
    "sinh", "smooth_l1_loss", "softmax.int", "softplus", "sum", "sum.dim_IntList", "tan",
)  # fmt: skip


def overload(name: str) -> torch._ops.OpOverload:
    """The operation called "name" or "name.overload"."""
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), which or "default")
