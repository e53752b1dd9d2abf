"""Random numbers per image rather than per batch: splitmix64 as a function of (seed, image, draw)."""

import math

import torch
from torch import Tensor

from advflyp.devices import to_device


def _signed(bits: int) -> int:
    """The signed 64-bit integer with the same last 64 bits."""
    return (bits + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


class Streams:
    """One stream of random numbers for each of N images.

    The k-th draw of an image is a function of (seed, the image's place in its dataset, k) alone: it does not depend on
    the device, the batch size, the order, or the other images in the batch, including those that left it early.

    Args:
        seed: Any integer; different seeds give different streams.
        index: (N,) int64, the images' places in their dataset.
        draws: How many draws have been made.
    """

    def __init__(self, seed: int, index: Tensor, draws: int = 0) -> None:
        self.seed = seed
        self.index = index.long()
        self.draws = draws

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> "Streams":
        """The streams of some of the images, by position or mask, in their present state."""
        return Streams(self.seed, self.index[rows], self.draws)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *shape) in [0, 1), the same numbers in float32 and float64."""
        return self.ahead(1, math.prod(shape)).to(dtype).view(-1, *shape)

    def ahead(self, draws: int, count: int) -> Tensor:
        """(N, draws, count) in [0, 1): the results of `draws` calls of `uniform(count)`, computed at once.

        A draw of fewer numbers is a prefix of a longer one.
        """
        # 24 bits fill a float32 mantissa; every value is a multiple of 2⁻²⁴.
        return _shift(self._bits(count, draws), 40).to(torch.float32).mul_(2.0**-24)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *shape) standard normal (Box–Muller), the same numbers in float32 and float64 up to rounding."""
        u, v = self.uniform(2, *shape, dtype=dtype).unbind(1)
        return torch.sqrt(-2 * torch.log1p(-u)) * torch.cos(2 * math.pi * v)

    def integers(self, high: int, *shape: int) -> Tensor:
        """(N, *shape) int64 in [0, high)."""
        return as_integers(self.uniform(*shape), high)

    def signs(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *shape), −1 or 1."""
        return as_signs(self.uniform(*shape), dtype)

    def _bits(self, count: int, draws: int) -> Tensor:
        """(N, draws, count) int64, the next draws."""
        numbers = range(self.draws + 1, self.draws + draws + 1)
        self.draws += draws
        salts = [_signed(_GOLDEN * number + 0xD1342543DE82EF95 * self.seed) for number in numbers]
        salt = salts[0] if draws == 1 else to_device(torch.tensor(salts), self.index.device)
        key = _mix(_mix(self.index + 1)[:, None] + salt)
        return _mix(key[..., None] + _GOLDEN * torch.arange(1, count + 1, device=key.device))


def as_integers(uniform: Tensor, high: int) -> Tensor:
    """Numbers in [0, 1) → int64 in [0, high)."""
    return (uniform * high).long().clamp_max_(high - 1)


def as_signs(uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1) → −1 or 1."""
    return (uniform < 0.5).to(dtype).mul_(2).sub_(1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64, in place; int64 products wrap around as unsigned ones do."""
    x.bitwise_xor_(_shift(x, 30)).mul_(_MIX[0])
    x.bitwise_xor_(_shift(x, 27)).mul_(_MIX[1])
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's `>>` extends the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
