"""A chat template is a program by a stranger: its prompts against transformers' own, and what it may not do."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
from transformers.utils.chat_template_utils import render_jinja_template

from advflyp.limits import MAX_PROMPT
from advflyp.model.interop import chat
from advflyp.model.interop.chat import chat_prompt

TURN = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
QUESTIONS = ["Is there a cat?", "Wie heißt „das“?\nOne word.", '{{ 7 * 7 }} "quoted" \\n', ""]


def processor(template: Any, **tokens: str) -> Any:
    return SimpleNamespace(chat_template=template, tokenizer=SimpleNamespace(special_tokens_map=tokens))


@pytest.mark.parametrize("template", [TURN, {"default": TURN, "tools": "{{ tools }}"}])
def test_prompts_are_those_of_transformers(template: Any) -> None:
    prompt = chat_prompt(processor(template, bos_token="<s>"), "M")
    for question in QUESTIONS:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        (expected,), _ = render_jinja_template(
            [[turn]], chat_template=TURN, add_generation_prompt=True, bos_token="<s>"
        )
        assert prompt(question) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            f"{{{{ 'a' * {MAX_PROMPT} }}}}{TURN}",
            r"its prompt has 100,\d+ characters; 100,000 are allowed",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + TURN, "maximum recursion depth"),
        ("{{ ''.__class__.__mro__ }}" + TURN, "access to attribute '__class__' .* is unsafe"),
        ("{{ raise_exception('no images,\nplease') }}", "no images,$"),
        ("{% if %}", "Expected an expression"),
        ("USER:", "it shows the question 0 times"),
        (TURN + TURN, "it shows the question 2 times"),
        (TURN.replace("part['text']", "part['text'] | upper"), "it shows the question 0 times"),
        ({"tools": TURN}, "it is no text"),
        (5, "it is no text"),
    ],
)
def test_templates_that_are_refused(template: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"the chat template of M cannot be used: {message}"):
        chat_prompt(processor(template), "M")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is not limited")
@pytest.mark.parametrize("make", ["{{ 'a' * 10 ** 9 }}", "{% set x = ('a' * 10 ** 8) * 100 %}"])
def test_a_template_that_fills_memory(make: str) -> None:
    with pytest.raises(ValueError, match="the chat template of M cannot be used: it takes too much memory"):
        chat_prompt(processor(make + TURN), "M")


@pytest.mark.parametrize("limit", ["CHAT_SECONDS", "CHAT_WALL_SECONDS"])
def test_a_template_that_does_not_end(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand million rounds: hours, in a sandbox that allows each of the two loops."""
    monkeypatch.setattr(chat, limit, 1)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    begun = time.monotonic()
    with pytest.raises(ValueError, match="the chat template of M cannot be used: it takes too long"):
        # Each its own text, as the answer on a text is kept.
        chat_prompt(processor(loops + limit), "M")
    assert time.monotonic() - begun < 60
