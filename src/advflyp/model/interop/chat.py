"""Prompts in the chat template of a processor of transformers, which is a program by a stranger."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from advflyp.limits import CHAT_BYTES, CHAT_SECONDS, CHAT_WALL_SECONDS, MAX_PROMPT

# Stands for the question. A template that changes it, or shows it twice, is refused.
QUESTION = "advflypquestion"
_RENDER = "import sys, runpy; sys.path[:] = {}; runpy.run_path({!r}, run_name='__main__')"
_PROGRAM = str(Path(__file__).with_name("render_chat.py"))


def chat_prompt(processor: Any, name: str) -> Callable[[str], str]:
    """Return a function: question → prompt, a user's turn with an image and the question in the processor's template.

    The template is rendered once, with a placeholder for the question, in a process whose time is limited (and whose
    memory, on Linux). Questions are inserted as they are.

    Args:
        processor: A processor of transformers with a chat template.
        name: The model's name in messages.

    Raises:
        ValueError: The template fails, takes too long or too much memory, or does not show the question just once.
    """
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    try:
        before, after = _around_question(template, json.dumps(processor.tokenizer.special_tokens_map))
    except ValueError as error:
        raise ValueError(f"the chat template of {name} cannot be used: {error}") from error
    return lambda question: f"{before}{question}{after}"


@lru_cache(maxsize=16)
def _around_question(template: str | None, tokens: str) -> tuple[str, str]:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    job = {
        "template": template,
        "tokens": json.loads(tokens),
        "turn": turn,
        "seconds": CHAT_SECONDS,
        "memory": CHAT_BYTES,
        "longest": MAX_PROMPT,
    }
    command = [sys.executable, "-c", _RENDER.format(sys.path, _PROGRAM)]
    try:
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, encoding="utf-8", timeout=CHAT_WALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ValueError("it takes too long") from None
    if done.returncode < 0:  # killed at its limit
        raise ValueError("it takes too long")
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["no reason is known"])[-1])
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(answer["error"])
    parts = answer["prompt"].split(QUESTION)
    if len(parts) != 2:
        raise ValueError(f"it shows the question {len(parts) - 1} times, not once and unchanged")
    return parts[0], parts[1]
