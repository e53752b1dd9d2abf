"""The templates: whatever they show is escaped, and they reach nothing but the data that they are given."""

import re
from importlib.resources import files

import pytest
import torch
from jinja2 import UndefinedError
from jinja2.exceptions import SecurityError

from advflyp.report.pages.jinja import _environment, data_uri


def test_templates_escape() -> None:
    lines = _environment().get_template("elements.html").module.lines  # type: ignore[attr-defined]
    assert lines("<b>\x1b\ud800 & \"x\"\n'y'") == "&lt;b&gt;\\x1b\\ud800 &amp; &#34;x&#34;<br>&#39;y&#39;"
    for path in (files("advflyp.report.pages") / "templates").iterdir():
        if path.name.endswith(".html"):
            assert not re.search(r"\|\s*safe\b|autoescape", path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize(
    "text",
    ["{{ ''.__class__.__mro__ }}", "{{ one.append(2) }}", "{{ one.__init__.__globals__ }}"],
)
def test_templates_are_sandboxed(text: str) -> None:
    with pytest.raises((SecurityError, UndefinedError)):
        _environment().from_string(text).render(one=[1])


def test_small_images_are_kept_exactly() -> None:
    assert data_uri(torch.rand(3, 64, 64)).startswith("data:image/png;base64,")
    assert data_uri(torch.rand(3, 224, 224)).startswith("data:image/jpeg;base64,")
