"""The size in the header of a JPEG XL image: Pillow's plugin decodes all pixels before it reports the size."""

from collections.abc import Iterator

from advflyp.errors import SkippedSample

SIGNATURE = b"\xff\x0a"
CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
# ISO/IEC 18181-1: the bits of a length, by the two bits before it, and ratios of width to height.
_LENGTHS = (9, 13, 18, 30)
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
# Bytes to read: more than a size header has.
_HEADER = 16
# Maximum number of boxes; three to ten are usual.
_BOXES = 1000


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height; None for another format; `SkippedSample` if the header is damaged."""
    if data.startswith(CONTAINER):
        code = b"".join(_codestream(data))[:_HEADER]
        if not code.startswith(SIGNATURE):
            raise SkippedSample("unreadable image")
    elif data.startswith(SIGNATURE):
        code = data[:_HEADER]
    else:
        return None
    bits = _Bits(code[len(SIGNATURE) :])
    small = bits.take(1)
    height = _length(bits, small)
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio]
        return height * numerator // denominator, height
    return _length(bits, small), height


def _codestream(data: bytes) -> Iterator[bytes]:
    """The first bytes of each box of a container that holds image data."""
    place = 0
    for _ in range(_BOXES):
        if place + 8 > len(data):
            return
        size, kind, head = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16]), 16
        end = place + size if size else len(data)
        if end < place + head:
            return
        # A partial codestream is preceded by its number.
        begin = place + head + (4 if kind == b"jxlp" else 0)
        if kind in (b"jxlc", b"jxlp"):
            yield data[begin : min(end, begin + _HEADER)]
        place = end


class _Bits:
    """Bits in order, from the lowest one of the first byte; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self.left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        found = self.left & ((1 << count) - 1)
        self.left >>= count
        return found


def _length(bits: _Bits, small: int) -> int:
    return 8 * (1 + bits.take(5)) if small else 1 + bits.take(_LENGTHS[bits.take(2)])
