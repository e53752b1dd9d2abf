"""From shards of JPEGs to batches of 224 pixels: images per second and core, compared with the plain way.

    python benchmarks/loader.py                     # decoders on one core, then the whole loader
    python benchmarks/loader.py --workers 1 2 4 8   # on a machine with as many cores

Images are crops of scikit-learn's two photographs, 256 to 512 pixels, JPEG quality 90. The plain way is Pillow,
torchvision's transforms (open_clip's own preprocessing) and a DataLoader over files. Runs are interleaved after one
warm-up run of each. Rates are medians, of processor time where stated (other programs disturb it less). Differences
are from the plain way's pixels, in grey levels of 255.
"""

import io
import json
import random
import resource
import statistics
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, cast

import simplejpeg
import torch
import tyro
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from sklearn.datasets import load_sample_images
from timing import Record, describe_machine, interleaved, medians
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.pairs import Pairs
from advflyp.data.training import open_training
from advflyp.wording import counted

SETTINGS = {"size": 224, "interpolation": "bicubic", "resize_mode": "shortest"}
READER = ImageReader(SETTINGS)
TOKENIZER = SimpleTokenizer()


@dataclass
class Arguments:
    """What to time."""

    images: int = 400
    batch_size: int = 64
    workers: tuple[int, ...] = (1, 2)
    repeats: int = 5
    """Timed runs of each candidate."""
    json: Path | None = None
    """File for the results."""
    stream: int = 20_000
    """Images in the long stream that peak memory is measured on; 0 skips it."""
    write: Path | None = None
    """Folder to write the images to, as a shard; nothing is timed."""


LOADERS = {"plain": "DataLoader", "threads": "ours, threads", "process": "ours, a process"}


def jpegs(n: int) -> list[bytes]:
    rng = random.Random(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    made = []
    for _ in range(n):
        photo, short = rng.choice(photos), rng.randint(256, 512)
        side = rng.randint(300, 427)
        x, y = rng.randint(0, 640 - side), rng.randint(0, 427 - side)
        crop = photo.crop((x, y, x + side, y + side)).resize((int(short * rng.uniform(1, 1.5)), short))
        stream = io.BytesIO()
        crop.save(stream, "JPEG", quality=90)
        made.append(stream.getvalue())
    return made


def plain(data: bytes) -> Tensor:
    return cast(Tensor, READER.transform(Image.open(io.BytesIO(data)).convert("RGB")))


def ours(data: bytes) -> Tensor:
    return READER.from_bytes(data)


def pillow(data: bytes) -> Tensor:
    return READER.from_image(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_scaled(data: bytes) -> Tensor:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (224, 224))
    return READER.from_image(image.convert("RGB"))


def turbo_scaled(data: bytes) -> Tensor:
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=224, min_width=224)
    return READER._fit(torch.from_numpy(pixels).permute(2, 0, 1))


def torchvision(data: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    assert isinstance(pixels, Tensor)
    return READER._fit(pixels)


DECODERS: dict[str, Callable[[bytes], Tensor]] = {
    "Pillow, open_clip's transform (plain)": plain,
    "Pillow, resize of uint8": pillow,
    "Pillow scaled decoding, resize of uint8": pillow_scaled,
    "torchvision's decoder (deprecated), resize of uint8": torchvision,
    "simplejpeg scaled decoding, resize of uint8": turbo_scaled,
    "simplejpeg, resize of uint8 (ours)": ours,
}


def decoders(data: list[bytes], repeats: int, record: Record) -> None:
    def over(decode: Callable[[bytes], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for one in data:
                decode(one)

        return run

    runs = {name: over(decode) for name, decode in DECODERS.items()}
    median = medians(interleaved(runs, repeats, clock=process_time))
    reference = [plain(one) * 255 for one in data]
    base = median["Pillow, open_clip's transform (plain)"]
    print(
        f"{'one core, processor time':52} {'ms/image':>9} {'images/s':>9} {'ratio':>6} {'mean diff':>10} {'max':>5}"
    )
    for name, decode in DECODERS.items():
        images = [image if image.dtype != torch.uint8 else image.float() for image in map(decode, data)]
        images = [image * 255 if decode is plain else image for image in images]
        difference = [(image - one).abs() for image, one in zip(images, reference, strict=True)]
        mean = statistics.fmean(d.mean().item() for d in difference)
        most = max(d.max().item() for d in difference)
        rate, ratio = len(data) / median[name], base / median[name]
        record.add(what="decoder", name=name, images_per_second=rate, ratio=ratio, mean_difference=mean)
        print(f"{name:52} {1000 / rate:9.2f} {rate:9.0f} {ratio:6.2f} {mean:10.4f} {most:5.0f}", flush=True)


class Files(Dataset):
    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        file = self.files[index]
        return plain(file.read_bytes()), TOKENIZER(file.with_suffix(".txt").read_text(encoding="utf-8"))[0]


def write_files(folder: Path, data: list[bytes]) -> None:
    folder.mkdir()
    for number, one in enumerate(data):
        (folder / f"{number:06d}.jpg").write_bytes(one)
        (folder / f"{number:06d}.txt").write_text(caption(number), encoding="utf-8")


def write_shards(folder: Path, data: list[bytes]) -> None:
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, one in enumerate(data):
            about = json.dumps({"key": number}).encode()
            for suffix, content in (("jpg", one), ("txt", caption(number).encode()), ("json", about)):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def tokenized(pairs: Pairs) -> Iterator[Tensor]:
    """The images of an epoch; untokenized captions are tokenized here, as in the first epoch of a training."""
    for batch in pairs.epoch(0):
        if batch.tokens is None:
            TOKENIZER(batch.captions)
        yield batch.images


def caption(number: int) -> str:
    return f"a photograph of a temple in the mountains on a cloudy day, number {number}"


def loaders(files: Path, shards: Path, arguments: Arguments, record: Record) -> None:
    """Time whole loaders, tokenization included, and the processor time each takes from the training's process."""
    print(f"\n{'whole loaders':36} {'images/s':>9} {'ratio':>6} {'ms an image of the own process':>31}")
    for workers in arguments.workers:
        plainly = DataLoader(
            Files(files), arguments.batch_size, shuffle=True, num_workers=workers, drop_last=True
        )
        runs: dict[str, Callable[[], Iterable[Tensor]]] = {
            "plain": lambda loader=plainly: (x for x, _ in loader)
        }
        for kind in ("threads", "process"):
            config = DataConfig(
                train=str(shards), batch_size=arguments.batch_size, workers=workers, loader=kind
            )
            pairs = open_training(
                config,
                "pairs",
                READER,
                seed=0,
                device=torch.device("cpu"),
                tokenizer=TOKENIZER if kind == "process" else None,
            )
            runs[kind] = partial(tokenized, pairs)
        images: dict[str, int] = {}
        own: dict[str, list[float]] = defaultdict(list)

        def epoch(name: str, images: dict[str, int] = images, own: Any = own, runs: Any = runs) -> None:
            begun = process_time()
            images[name] = sum(map(len, runs[name]()))
            own[name].append(process_time() - begun)

        median = medians(interleaved({name: partial(epoch, name) for name in runs}, arguments.repeats))
        for name, seconds in median.items():
            rate, ratio = images[name] / seconds, median["plain"] / seconds * images[name] / images["plain"]
            lock = 1000 * statistics.median(own[name][1:]) / images[name]
            record.add(
                what="loader", workers=workers, name=name, images_per_second=rate, ratio=ratio, own_ms=lock
            )
            label = f"{LOADERS[name]}, {counted(workers, 'worker')}"
            print(f"{label:36} {rate:9.0f} {ratio:6.2f} {lock:31.2f}", flush=True)


def lock_share(data: list[bytes], shards: Path) -> None:
    """The time per image under the interpreter lock, which limits a process on any number of cores, and outside it."""
    config = DataConfig(train=str(shards), batch_size=64, workers=1)
    pairs = open_training(config, "pairs", READER, seed=0, device=torch.device("cpu"))
    start = process_time()
    for _ in pairs.stream.samples(0):  # type: ignore[attr-defined]
        pass
    reading = (process_time() - start) / len(data)
    start = process_time()
    for one in data:
        ours(one)
    decoding = (process_time() - start) / len(data)
    start = process_time()
    TOKENIZER([caption(number) for number in range(len(data))])
    tokenizing = (process_time() - start) / len(data)
    print(
        f"\nall of it under the interpreter lock: reading and grouping tar members {1e6 * reading:.0f} µs an image, "
        f"tokenizing {1e6 * tokenizing:.0f} µs; nearly all of it outside: decoding and resizing {1e6 * decoding:.0f} µs"
    )
    print(f"cores for 4,000 images/s, at this machine's speed: {4000 * (reading + decoding):.1f}")


def memory(shards: Path, images: int, per_epoch: int) -> None:
    """Peak memory after a tenth of a long stream and after all of it."""
    config = DataConfig(train=str(shards), batch_size=64, workers=2, shuffle_buffer=100)
    pairs = open_training(config, "pairs", READER, seed=0, device=torch.device("cpu"))
    peaks = []
    for epoch in range(max(10, images // per_epoch)):
        for _ in pairs.epoch(epoch):
            pass
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    early, late = peaks[len(peaks) // 10], peaks[-1]
    some = len(peaks) // 10 + 1
    print(f"peak memory after {some} and {len(peaks)} epochs of {per_epoch}: {early:.0f} and {late:.0f} MiB")


def main() -> None:
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    data = jpegs(arguments.images)
    if arguments.write is not None:
        write_shards(arguments.write, data)
        return
    print(f"{len(data)} JPEGs of {sum(map(len, data)) / len(data) / 1000:.0f} kB, 256 to 512 pixels → 224")
    record = Record("loader", arguments.json, arguments, describe_machine("cpu"))
    decoders(data, arguments.repeats, record)
    with tempfile.TemporaryDirectory() as folder:
        files, shards = Path(folder) / "files", Path(folder) / "shards"
        write_files(files, data)
        write_shards(shards, data)
        loaders(files, shards, arguments, record)
        lock_share(data, shards)
        if arguments.stream:
            memory(shards, arguments.stream, len(data))


if __name__ == "__main__":
    main()
