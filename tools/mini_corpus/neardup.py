"""Find near-duplicates between two collections of pictures, in colour and in shape, sparse line art included.

A root-mean-square difference on a white page calls any two sparse icons similar, because most of both is paper. So
pictures are compared by their *ink* (white minus the picture, blurred): the distance of two pictures is the norm of
the difference of their ink over the larger of the two norms; 0 for equal pictures, about 1 for unrelated ones,
however much or little ink there is. A second distance does the same with their edges, which finds recoloured
copies. Both are minima over small shifts and the mirror image.
"""

from collections.abc import Iterator

import numpy as np

from tools.mini_corpus.render import on_white

# Set by looking at pairs on either side: below 0.25 are copies, recoloured copies, the same flag in another
# proportion, and plain discs and squares; from 0.3 on, most pairs only resemble each other.
COLOUR_LIMIT = 0.25
EDGE_LIMIT = 0.25
_PORTION = 24  # references compared at a time, nearest first, until a portion holds no match
_SLACK = 0.25  # how far above the limit a match may be at half the resolution, before shifts are tried
_SHIFTS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
_BATCH = 256


def find(
    queries: np.ndarray,
    references: np.ndarray,
    *,
    colour_limit: float = COLOUR_LIMIT,
    edge_limit: float = EDGE_LIMIT,
) -> set[tuple[int, int]]:
    """The pairs of near-duplicates between two collections: indices of a query and of a reference.

    Args:
        queries, references: (N, 64, 64, 3 or 4) and (M, 64, 64, 3 or 4) uint8; RGBA is composed on white.

    Near-duplicates have a colour distance of at most colour_limit or an edge distance of at most edge_limit.
    """
    if not len(queries) or not len(references):
        return set()
    return {
        *_near(queries, references, False, colour_limit),
        *_near(queries, references, True, edge_limit),
    }


def _near(
    queries: np.ndarray, references: np.ndarray, edges: bool, limit: float
) -> Iterator[tuple[int, int]]:
    """The pairs within the limit in one kind of feature."""
    coarse = np.concatenate(
        [_halve(_features(references[i : i + _BATCH], edges)) for i in range(0, len(references), _BATCH)]
    )
    for start in range(0, len(queries), _BATCH):
        block = queries[start : start + _BATCH]
        for pictures in (block, block[:, :, ::-1]):
            rough = _distances(_halve(_features(pictures, edges)), coarse)
            for row in np.flatnonzero(rough.min(1) <= limit + _SLACK):
                shifted = np.stack([np.roll(pictures[row], shift, (0, 1)) for shift in _SHIFTS])
                mine = _flat(_features(shifted, edges))
                order = np.argsort(rough[row], kind="stable")
                for first in range(0, len(order), _PORTION):
                    nearest = order[first : first + _PORTION]
                    fine = _distances(mine, _flat(_features(references[nearest], edges))).min(0)
                    for reference in nearest[fine <= limit]:
                        yield start + int(row), int(reference)
                    if fine.min() > limit:
                        break


def _features(pictures: np.ndarray, edges: bool) -> np.ndarray:
    """(N, 64, 64, 3 or 4) uint8 → blurred ink (N, 32, 32, 3) or blurred edges (N, 32, 32, 1), float32."""
    rgb = on_white(pictures) if pictures.shape[-1] == 4 else pictures
    planes = 1 - rgb.astype(np.float32) / 255
    if edges:
        padded = np.pad(planes, ((0, 0), (1, 1), (1, 1), (0, 0)))
        across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        planes = np.sqrt((across**2 + down**2).sum(-1, keepdims=True))
        # The root lets faint lines count beside strong ones: a recoloured copy has other contrasts.
        planes = np.sqrt(planes / np.maximum(planes.max((1, 2, 3), keepdims=True), 1e-3))
    return _blur(_blur(planes, 1), 2)[:, ::2, ::2]


def _blur(planes: np.ndarray, axis: int) -> np.ndarray:
    """Weights 1 2 3 2 1 along an axis of (N, H, W, C); zeros beyond the border."""
    pad = [(2, 2) if a == axis else (0, 0) for a in range(4)]
    padded = np.pad(planes, pad)
    n = planes.shape[axis]
    out = np.zeros_like(planes)
    for offset, weight in enumerate((1, 2, 3, 2, 1)):
        out += np.float32(weight / 9) * np.take(padded, range(offset, offset + n), axis)
    return out


def _halve(planes: np.ndarray) -> np.ndarray:
    """(N, 32, 32, C) → (N, 16·16·C) by averaging 2×2 cells."""
    n, height, width, channels = planes.shape
    return _flat(planes.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4)))


def _flat(planes: np.ndarray) -> np.ndarray:
    return planes.reshape(len(planes), -1)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, D) and (M, D) → (N, M): the norm of the difference over the larger norm."""
    norm_a, norm_b = np.linalg.norm(a, axis=1)[:, None], np.linalg.norm(b, axis=1)[None]
    squared = norm_a**2 + norm_b**2 - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squared, 0)) / np.maximum(np.maximum(norm_a, norm_b), 1e-6)
