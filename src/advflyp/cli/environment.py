"""`advflyp env`: what a bug report needs to say about the machine and the installed packages."""

import os
import platform
import re
import sys
from pathlib import Path

from advflyp.terminal import say
from advflyp.wording import counted

PACKAGES = (
    "torchvision", "open_clip_torch", "timm", "transformers", "accelerate", "numpy", "pillow", "pyarrow",
    "huggingface_hub",
)  # fmt: skip
# Instruction sets that decide how fast matrices are multiplied, as the kernel names them.
INSTRUCTIONS = ("sse4_2", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")


def env() -> None:
    """Print what a bug report needs: versions, processor, GPUs, the precision that auto chooses, threads, system."""
    for name, value in describe_environment().items():
        say(f"{name:16} {value}")


def describe_environment() -> dict[str, str]:
    """The facts about this machine, by name; every value is one line."""
    import torch

    from advflyp.__about__ import __version__
    from advflyp.devices import available_devices, pick_device
    from advflyp.model.precision import choose_precision

    devices = [name for name in available_devices() if name.startswith("cuda")]
    chosen = pick_device("auto")
    return {
        "advflyp": f"{__version__} ({Path(__file__).parents[1]})",
        "system": f"{platform.platform()}, {platform.machine()}",
        "python": f"{platform.python_version()} ({sys.executable})",
        # Includes what it was built for, which the package's own version leaves out.
        "torch": torch.__version__,
        **{name: _version(name) for name in PACKAGES},
        "processor": f"{processor_name()}, {counted(_cores(), 'core')}",
        "instructions": f"{', '.join(instructions()) or 'unknown'}; torch uses "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "threads": f"{torch.get_num_threads()} (OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')})",
        "GPUs": "; ".join(map(_gpu, devices)) or "none",
        "CUDA": f"torch was built with {torch.version.cuda or torch.version.hip or 'none'}",
        "device": f"auto is {chosen}",
        "precision": f"auto is {choose_precision('auto', chosen)}".replace("auto is precision", "auto is"),
    }


def processor_name() -> str:
    """The processor's model name, or its architecture if the name is unknown."""
    match = re.search(r"model name\s*: (.*)", _cpuinfo())
    return match[1] if match else platform.machine()


def instructions() -> list[str]:
    """Those of `INSTRUCTIONS` that the processor has; known only on Linux."""
    match = re.search(r"^(?:flags|Features)\s*: (.*)", _cpuinfo(), re.M)
    there = set(match[1].split()) if match else set()
    return [name for name in INSTRUCTIONS if name in there]


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.is_file() else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu(name: str) -> str:
    import torch

    about = torch.cuda.get_device_properties(name)
    memory = f"{about.total_memory / 2**30:.1f} GiB"
    return f"{name} {about.name}, {memory}, capability {about.major}.{about.minor}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
