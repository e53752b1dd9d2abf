"""The pages of docs/: links lead somewhere, the site shows all of them, the map of the files is whole."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_the_site_has_every_page() -> None:
    class Loader(yaml.SafeLoader):
        """mkdocs' own tags, which say nothing of the pages."""

    tree = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    shown = re.findall(r"[\w-]+\.md", str(tree["nav"]))
    assert sorted(shown) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_map_of_the_files_is_whole() -> None:
    text = (ROOT / "docs/design.md").read_text()
    package = ROOT / "src/advflyp"
    # The mini corpus is one row.
    names = {path.name for path in package.rglob("*.py") if path.parent.name != "mini"}
    names -= {"__init__.py", "__about__.py", "__main__.py"}
    missing = sorted(name for name in names if f"{name}`" not in text)
    assert not missing
