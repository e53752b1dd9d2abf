"""Renders a chat template; `chat.py` runs this file as a process of its own, which ends if the template never would.

It reads a job as JSON from standard input: the template, the special tokens and the turn that are given to it, how many
seconds and bytes it may use beyond those of the imports, and the longest prompt in characters. It writes the prompt or
an error as JSON.
"""

import json
import math
import resource
import sys
import time
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


def limit(seconds: int, memory: int) -> None:
    """End this process after so many more seconds of computing; on Linux also limit the memory it still gets."""
    # At the hard limit the process is killed, without a core dump.
    end = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, end))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            memory += int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def rendered(job: dict[str, Any]) -> dict[str, str]:
    """{"prompt"} or {"error"}."""
    if not isinstance(job["template"], str):
        return {"error": "it is no text"}
    try:
        (prompt,), _ = render_jinja_template(
            [[job["turn"]]], chat_template=job["template"], add_generation_prompt=True, **job["tokens"]
        )
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # a template is untrusted code, though in a sandbox
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    if len(prompt) > job["longest"]:
        return {"error": f"its prompt has {len(prompt):,} characters; {job['longest']:,} are allowed"}
    return {"prompt": prompt}


if __name__ == "__main__":
    job = json.load(sys.stdin)
    limit(job["seconds"], job["memory"])
    sys.stdout.write(json.dumps(rendered(job)))
