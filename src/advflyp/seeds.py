"""Seeds derived from values, the same on every machine."""

import hashlib
from typing import Any


def derive_seed(*parts: Any, bits: int = 63) -> int:
    """Derive a seed from any values, by a hash of their text.

    Args:
        parts: The run's seed, and what distinguishes this use of it: a step, an epoch, a name.
        bits: Length of the seed: 63 for torch, 128 for NumPy's PCG64.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest, "big") >> (8 * len(digest) - bits)
