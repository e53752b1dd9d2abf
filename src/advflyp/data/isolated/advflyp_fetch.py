"""Runs img2dataset in its isolated environment: `advflyp_fetch.py check`, or `advflyp_fetch.py JOB.json`.

`check` prints {"version", "python", "opencv", "parameters", "distributors"} as JSON. A job is {"arguments",
"first_shard", "limits"}: the arguments of `img2dataset.download`; the number of the first shard, which keeps keys
unique across runs; and the guard's limits. advflyp holds standard input open. When it closes, however advflyp ended,
this process and its workers end too, so that nothing writes into a folder that a later run may be using.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import signal
import sys
import threading
from typing import Any

import advflyp_guard  # pyright: ignore[reportMissingImports]
import advflyp_resizer  # pyright: ignore[reportMissingImports]


def check() -> None:
    """Say what is installed."""
    main = importlib.import_module("img2dataset.main")
    further = [name for name in ("pyspark", "ray") if importlib.util.find_spec(name)]
    found = {
        "version": importlib.metadata.version("img2dataset"),
        "python": platform.python_version(),
        "opencv": importlib.import_module("cv2").__version__,
        "parameters": sorted(inspect.signature(main.download).parameters),
        "distributors": ["multiprocessing", *further],
    }
    print(json.dumps(found))


def end_with_parent() -> None:
    """End the whole process group when standard input ends."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.killpg(os.getpgid(0), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def prove_guard(limits: Any) -> None:
    """Exit unless the guard covers img2dataset's own download function, so that nothing is downloaded without it."""
    advflyp_guard.install(limits)
    downloader = importlib.import_module("img2dataset.downloader")
    answer = downloader.download_image((0, "http://127.0.0.1:9/"), 5, None, None)
    if advflyp_guard.PRIVATE not in str(answer[2]):
        sys.exit("the guard against private addresses has no effect on this version of img2dataset")


def run(path: str) -> None:
    """Do a job."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    limits = advflyp_guard.Limits(**job["limits"])
    end_with_parent()
    if not limits.allow_private:
        prove_guard(limits)
    # The package's attribute `main` is a function of the same name.
    main: Any = importlib.import_module("img2dataset.main")
    reader = main.Reader

    def numbered(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(reader).bind(*args, **kwargs)
        bound.arguments["start_shard_id"] = job["first_shard"]
        return reader(*bound.args, **bound.kwargs)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        return advflyp_guard.GuardedDownloader(limits, *args, **kwargs)

    main.Reader, main.Downloader, main.Resizer = numbered, guarded, advflyp_resizer.UprightResizer
    main.download(**job["arguments"])


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check()
    else:
        run(sys.argv[1])
