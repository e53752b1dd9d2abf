"""Docstrings as Markdown for the site: a line that explains a parameter becomes an item of a list."""

import re

import griffe

PARAMETER = re.compile(r"^(\w+(?:, \w+)*):\s+(.+)$")


class Parameters(griffe.Extension):
    """Our docstrings explain parameters in lines of "name: what it is", continued by indented lines."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    """The docstring with its lines of parameters as a list."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        found = PARAMETER.match(line)
        if found and not inside:
            lines.append("")
        if inside and line and not found and not line.startswith(" "):
            lines.append("")
        inside = bool(found) or (inside and line.startswith(" "))
        lines.append(f"- `{found[1]}`: {found[2]}" if found else f"  {line.strip()}" if inside else line)
    return "\n".join(lines)
