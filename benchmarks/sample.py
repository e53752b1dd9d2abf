"""Sampling a million rows from many: rows a second, and the most memory the process took.

    python benchmarks/sample.py                       # 20 million rows of synthetic metadata, in a temporary folder

The metadata look like LAION's: addresses of about 80 characters, captions of about 60, similarity, sizes, a licence.
The sampling runs in a process of its own, whose peak resident memory is reported.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

PER_FILE = 2_500_000
GROUP = 250_000
CHILD = """
import json, resource, sys, time
from pathlib import Path
from advflyp.data.web.sample import plan, sample
planned = plan([sys.argv[1]], num=int(sys.argv[2]), expect_success=0.68)
start = time.perf_counter()
summary = sample([sys.argv[1]], num=int(sys.argv[2]), out=Path(sys.argv[3]), expect_success=0.68)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
seconds = time.perf_counter() - start
found = {"seconds": seconds, "peak": peak, "rows": summary.rows, "kept": summary.kept, "planned": planned.memory}
print(json.dumps(found))
"""


@dataclass
class Arguments:
    """How much."""

    rows: int = 20_000_000
    num: int = 1_000_000
    """Good pairs wanted; 1/0.68 times as many rows are drawn."""


def write(folder: Path, rows: int) -> int:
    """Files of synthetic metadata; their size in bytes."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    for number, first in enumerate(range(0, rows, PER_FILE)):
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", SCHEMA) as writer:
            for start in range(first, min(first + PER_FILE, rows), GROUP):
                n = min(GROUP, rows - start)
                ids = rng.integers(0, 1 << 62, n)
                chosen = words[rng.integers(0, len(words), (n, 7))]
                columns = [
                    [f"https://images.example{i % 9973}.com/media/{i:x}/{i % 89}/picture.jpg" for i in ids.tolist()],
                    [" ".join(row) for row in chosen],
                    rng.random(n),
                    rng.integers(50, 3000, n),
                    rng.integers(50, 3000, n),
                    ["?"] * n,
                ]  # fmt: skip
                writer.write_table(pa.table(columns, schema=SCHEMA))
    return sum(path.stat().st_size for path in folder.iterdir())


SCHEMA = pa.schema(
    [
        ("URL", pa.string()),
        ("TEXT", pa.string()),
        ("similarity", pa.float64()),
        ("WIDTH", pa.int64()),
        ("HEIGHT", pa.int64()),
        ("LICENSE", pa.string()),
    ]
)


def main() -> None:
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "metadata"
        place.mkdir()
        start = perf_counter()
        size = write(place, arguments.rows)
        print(
            f"{arguments.rows:,} rows, {size / 1e9:.2f} GB, written in {perf_counter() - start:.0f} s",
            flush=True,
        )
        command = [
            sys.executable,
            "-c",
            CHILD,
            f"{place}/*.parquet",
            str(arguments.num),
            f"{folder}/out.parquet",
        ]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)
        print(
            f"drew {found['kept']:,} of {found['rows']:,} rows in {found['seconds']:.0f} s, "
            f"{found['rows'] / found['seconds']:,.0f} rows/s, peak memory {found['peak'] / 2**30:.2f} GiB "
            f"(foreseen by the plan: {found['planned'] / 2**30:.2f} GiB)"
        )


if __name__ == "__main__":
    main()
