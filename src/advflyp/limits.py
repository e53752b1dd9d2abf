"""Limits on the bytes, pixels and seconds that reading untrusted data may cost. Real images stay far below them."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from advflyp.errors import RunError, SkippedSample, naming, refusal

# An encoded image: the size of MAX_PIXELS without compression.
MAX_IMAGE_BYTES = 1 << 28
# Pillow's own limit for what may be a decompression bomb: 89 million pixels, 270 MB decoded.
MAX_PIXELS = 89_478_485
# The longer side divided by the shorter. Models resize the shorter side to their input size, so that a line of
# 8 × 11,000,000 pixels would become 224 × 308,000,000.
MAX_ASPECT = 256
# Pixels times scans of a JPEG: some twenty seconds. One to ten scans are usual.
MAX_SCANNED = 20 * MAX_PIXELS
# Any text tower reads far less; anything longer is a page of HTML or worse.
MAX_CAPTION_BYTES = 20_000
# A class index, with room for blanks.
MAX_LABEL_BYTES = 64
# A member of a tar that is skipped. A damaged header can claim any size.
MAX_MEMBER_BYTES = 1 << 40
# An extended header of a tar holds a name of at most 4,096 bytes and a few numbers.
MAX_TAR_HEADER_BYTES = 1 << 20
# A text table, which is read whole; a table that is a JSON list is a document, see MAX_DOCUMENT_BYTES.
MAX_TABLE_BYTES = 4 << 30
# The manifest of a folder of shards, which is read whole, too.
MAX_MANIFEST_BYTES = 64 << 20
# JSON about a model, a dataset or a run. The largest common ones are tokenizers and file lists, of some 20 MB.
MAX_DOCUMENT_BYTES = 256 << 20
# Results and metrics: a line has 1,000 to 10,000 bytes.
MAX_RESULTS_BYTES = 1 << 30
# Predictions of a result: Parquet holds a billion equal ones in a few kilobytes.
MAX_PREDICTIONS = 1 << 24
# Levels of lists and objects in JSON and TOML: a tokenizer has a dozen.
MAX_DEPTH = 64
# A recipe has 2,000 to 4,000 bytes.
MAX_RECIPE_BYTES = 256 << 10
# A text list: class names, prompts, labels, the files of a split.
MAX_LIST_BYTES = 64 << 20
# Characters of a class name, a prompt or a label. A tokenizer takes quadratic time for a long word.
MAX_NAME = 1_000
# Letters of a word in a caption, for the same reason: 20,000 would take nine seconds.
MAX_WORD = 500
# Encoded samples that are shuffled together; with common images, data.shuffle_buffer needs less.
MAX_SHUFFLED_BYTES = 1 << 30
# Encoded samples that are decoded ahead of time.
MAX_AHEAD_BYTES = 1 << 30
# A packed tar may unpack to FREE_BYTES plus MAX_RATIO times what was read of it. Images hardly shrink.
MAX_RATIO, FREE_BYTES = 200, 256 << 20
# Total seconds for an image from the web.
FETCH_SECONDS = 60.0
# Seconds for a tokenizer call, and extra seconds for each text: its files may hold untrusted regular expressions.
# A text usually takes some ten microseconds.
TOKENIZER_SECONDS, TOKENIZER_SECONDS_A_TEXT = 60.0, 0.01
# How many times longer a text may become before it is split into tokens: no common tokenizer doubles it.
MAX_TEXT_GROWTH = 16
# A chat template is a program: its seconds of computing, those of its process, its memory and its prompt's characters.
# A usual one takes milliseconds and makes some thousand characters.
CHAT_SECONDS, CHAT_WALL_SECONDS, CHAT_BYTES, MAX_PROMPT = 10, 120, 1 << 29, 100_000


# Errors of the machine and its disks, not of one file: otherwise every following file would count as unusable.
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Within the block, a failure of the machine or its disks is a `RunError`; other `OSError`s concern the file."""
    try:
        with naming(path):
            yield
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise RunError(str(refusal(error))) from error
        raise


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for the other end of a pipe.

    Raises:
        OSError: It cannot be opened.
        RunError: The machine or its disks fail, so that no other file can be opened either.
        SkippedSample: It is a device, a pipe, a socket or a folder.
    """
    with reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SkippedSample("not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(file: BinaryIO, limit: int) -> bytes:
    """The rest of a file; `SkippedSample` if that is more than `limit` bytes."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise SkippedSample(
            f"is larger than {limit >> 20} MB" if limit >> 20 else f"is larger than {limit >> 10} kB"
        )
    return data


def read_image_file(path: str | Path) -> bytes:
    """The bytes of an encoded image; OSError or `SkippedSample` if it cannot be read or is too large."""
    with open_regular(path) as file, reading(path):
        return read_image_stream(file)


def read_image_stream(stream: BinaryIO, size: int = MAX_IMAGE_BYTES + 1) -> bytes:
    """As `read_image_file`, from an open file: the image is its next `size` bytes, or whatever is left."""
    data = stream.read(min(size, MAX_IMAGE_BYTES + 1))
    if len(data) > MAX_IMAGE_BYTES:
        raise SkippedSample("image file is too large")
    return data
