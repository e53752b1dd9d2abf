"""What the benchmarks share: the machine's description, interleaved runs, a JSON file of what was measured.

    python benchmarks/timing.py --device cuda --json machine.json

describes this machine, and names the dependencies that its Python lacks.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Instruction sets that decide how fast a processor multiplies matrices, by kernel name and by usual name.
WIDTHS = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("sse4_2", "SSE4.2"), ("sve", "SVE"), ("asimd", "NEON"))
BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def describe_machine(device: str, commit: str | None = None) -> dict[str, Any]:
    """Describe the machine that figures were measured on.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        commit: The measured commit, if the checkout is a copy without its history.

    Returns:
        Device, processor, cores, threads, versions, driver, commit and date, all of them short strings or numbers.
    """
    import torch

    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "processor": instruction_sets(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else "",
        "commit": commit or _output("git", "-C", str(ROOT), "describe", "--always", "--dirty") or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def instruction_sets() -> str:
    """The processor's widest instructions and whether it multiplies bf16: "AVX-512, bf16"; known only on Linux."""
    import torch

    from advflyp.cli.environment import instructions

    flags = set(instructions())
    widest = next((name for flag, name in WIDTHS if flag in flags), platform.machine())
    parts = [widest, *(["AMX"] if "amx_bf16" in flags else []), *(["bf16"] if flags & set(BF16) else [])]
    used = torch.backends.cpu.get_cpu_capability()
    if widest == "AVX-512" and used in ("DEFAULT", "AVX2"):
        parts.append(f"torch narrowed to {used}")
    return ", ".join(parts)


def missing_packages() -> list[str]:
    """The project's dependencies that this Python does not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [name for name in map(_name, project["dependencies"]) if not _installed(name)]


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Time several runs that are to be compared: the seconds of each call, by name.

    Every round calls all of them, every other round in reverse order, so that other load on the machine affects them
    alike. A run on an accelerator must wait for its result.

    Args:
        runs: What to time, by name.
        rounds: Timed calls of each.
        warmup: Untimed calls of each before the first timed one.
        clock: `process_time` for processor time of this process, which other programs disturb less.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        order = names if index % 2 == 0 else names[::-1]
        for name in order:
            begun = clock()
            runs[name]()
            if index >= warmup:
                seconds[name].append(clock() - begun)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclass
class Record:
    """What a benchmark measured. Its file, if any, is complete after every row, also if the run is interrupted."""

    benchmark: str
    path: Path | None
    arguments: Any
    machine: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        if self.path is not None:
            tree = {"benchmark": self.benchmark, "arguments": vars(self.arguments)}
            write_json(self.path, {**tree, "machine": self.machine, "rows": self.rows})


def write_json(path: Path, tree: Any) -> None:
    """As `write_text`, for what JSON can hold; anything else is written as its text."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write the whole file or leave the one before, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _output(*command: str) -> str:
    """The first line that a program prints; empty if it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    return "" if done.returncode else done.stdout.partition("\n")[0].strip()


def _name(requirement: str) -> str:
    return requirement.partition(">")[0].partition("[")[0].strip()


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Describe this machine.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--commit", help="the measured commit, where there is no git history")
    parser.add_argument("--json", type=Path, help="file for the description")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no CUDA device here; use --device cpu")
    tree = {"machine": describe_machine(arguments.device, arguments.commit), "missing": missing_packages()}
    print(json.dumps(tree, indent=1, ensure_ascii=False))
    if arguments.json is not None:
        write_json(arguments.json, tree)


if __name__ == "__main__":
    main()
