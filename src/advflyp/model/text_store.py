"""Caption embeddings of a frozen text tower, cached on disk across runs.

Each text tower has a folder, named by a hash of everything an embedding depends on: weights, configuration, tokenizer,
precision. It holds files of records (digest of the text, embedding); every process appends to its own file and reads
all of them.
"""

import hashlib
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from advflyp.devices import to_device
from advflyp.files import append, try_open_locked
from advflyp.identity import state_sha256
from advflyp.model.clip import CLIP, chosen
from advflyp.model.folder import config_sha256

DIGEST = 16
# More than the number of records in any file.
SOURCE = 1 << 40
PROBE = ["a photo of a cat.", "Ein Vogel – 32 °C", "数字 1234567890", "UPPER lower\ttab", "x" * 500]


class TextStore:
    """N texts, with their tokens if known → (N, d) constants on the model's device.

    Each text is encoded once across all runs.

    Attributes:
        model: The model, whose text tower must not change.
        folder: Where embeddings are kept, 4·d + 16 bytes each; each also takes some 200 bytes of memory.
        capacity: Maximum number of known texts; others are encoded every time.

    ValueError if the folder cannot be written to.
    """

    def __init__(self, model: CLIP, folder: str | Path, capacity: int = 10_000_000) -> None:
        self.model = model
        self.capacity = capacity
        with torch.no_grad():
            probe = model.encode_text(PROBE[:1]).cpu().numpy()
        self.record = np.dtype([("digest", f"V{DIGEST}"), ("embedding", probe.dtype, probe.shape[1:])])
        self.folder = Path(folder).expanduser() / text_key(model)
        try:
            self.file = self._own_file()
        except OSError as error:
            raise ValueError(f"cannot write to data.text_cache = {folder}: {error.strerror}") from None
        self.sources: list[IO[bytes]] = []
        self.places: dict[bytes, int] = {}  # digest → source · SOURCE + record
        for path in sorted(self.folder.glob("*.bin")):
            if path == Path(self.file.name):
                self.own = len(self.sources)
            self.sources.append(open(path, "rb"))  # noqa: SIM115, open as long as the store
            # A crash may have cut off the last record, which is then not counted.
            whole = path.stat().st_size // self.record.itemsize
            if whole:  # an empty file cannot be mapped
                records = np.memmap(path, self.record, "r", shape=(whole,))
                self._know(records, len(self.sources) - 1, 0)

    def __len__(self) -> int:
        return len(self.places)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], tokens: Tensor | None = None) -> Tensor:
        digests = [hashlib.blake2b(text.encode(), digest_size=DIGEST).digest() for text in texts]
        missing = {digest: row for row, digest in enumerate(digests) if digest not in self.places}
        fresh = np.empty(len(missing), self.record)
        if missing:
            fresh["digest"] = np.array(list(missing), f"V{DIGEST}")
            unknown = [texts[row] for row in missing.values()]
            embeddings = self.model.encode_text(unknown, chosen(tokens, missing.values()))
            fresh["embedding"] = embeddings.cpu().numpy()
            self._keep(fresh[: max(0, self.capacity - len(self.places))])
        new = {digest: row for row, digest in enumerate(missing)}
        rows = [fresh["embedding"][new[d]] if d in new else self._kept(self.places[d]) for d in digests]
        return to_device(torch.from_numpy(np.stack(rows)), self.model.device)

    def _keep(self, records: np.ndarray) -> None:
        end = append(self.file, records.tobytes())
        self._know(records, self.own, end // self.record.itemsize - len(records))

    def _kept(self, place: int) -> np.ndarray:
        source, record = divmod(place, SOURCE)
        size = self.record.itemsize
        data = os.pread(self.sources[source].fileno(), size, record * size)
        return np.frombuffer(data, self.record)["embedding"][0]

    def _know(self, records: np.ndarray, source: int, first: int) -> None:
        known = records[: max(0, self.capacity - len(self.places))]
        begin = source * SOURCE + first
        self.places.update({digest.tobytes(): begin + row for row, digest in enumerate(known["digest"])})

    def _own_file(self) -> IO[bytes]:
        """The first file that no other running process appends to."""
        files = (try_open_locked(self.folder / f"{number:03d}.bin") for number in count())
        file = next(file for file in files if file is not None)
        file.truncate(file.seek(0, os.SEEK_END) // self.record.itemsize * self.record.itemsize)
        file.seek(0, os.SEEK_END)
        return file


def text_key(model: CLIP) -> str:
    """A hash of everything a text embedding depends on: text tower, configuration, tokenizer, precision."""
    # A causal mask is a buffer that no state dict holds.
    tensors = model.net.state_dict() | dict(model.net.named_buffers())
    tower = {
        name: value
        for name, value in tensors.items()
        if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias")
    }
    digest = hashlib.sha256(f"{model.precision} {config_sha256(model)} {state_sha256(tower)}".encode())
    # The tokens of some texts stand for the tokenizer, however it is built.
    digest.update(model.tokenizer(PROBE).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
