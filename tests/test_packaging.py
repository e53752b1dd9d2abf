"""What leaves the repository: the archives, the pins, and the Makefile's set-up."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from advflyp.__about__ import __version__

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def pins() -> dict[str, Version]:
    lines = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    return {r.name: Version(str(r.specifier).removeprefix("==")) for r in map(Requirement, lines)}


def package_files() -> set[str]:
    """Every file of the package that git would keep, relative to src/."""
    files = (p for p in (ROOT / "src" / "advflyp").rglob("*") if p.is_file())
    return {p.relative_to(ROOT / "src").as_posix() for p in files if "__pycache__" not in p.parts}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_archive_holds_the_whole_package(kind, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", tmp_path], cwd=ROOT, check=True
    )
    (archive,) = tmp_path.iterdir()
    if kind == "wheel":
        names = set(zipfile.ZipFile(archive).namelist())
        packed = {name for name in names if name.startswith("advflyp/")}
    else:
        with tarfile.open(archive) as tar:
            names = {name.split("/", 1)[1] for name in tar.getnames()}
        packed = {name.removeprefix("src/") for name in names if name.startswith("src/")}
        # The link `configs` becomes a copy, so that `configs/…` works there as well.
        recipes = {n.removeprefix("src/advflyp/") for n in names if n.startswith("src/advflyp/configs/")}
        assert recipes and recipes <= names
        assert {"Makefile", "constraints.txt", "LICENSE", "tests/test_packaging.py"} <= names
    assert packed == package_files()
    assert any(name.endswith(".tar.gz") for name in packed)
    assert any(name.endswith(".safetensors") for name in packed)


def test_configs_link_leads_into_the_package():
    assert (ROOT / "configs").resolve() == ROOT / "src" / "advflyp" / "configs"


def test_constraints_are_exact_versions_without_addresses():
    assert not re.search(r"://|@|\+|^-", CONSTRAINTS, flags=re.MULTILINE)
    assert len(pins()) > 50  # the transitive ones too


def test_constraints_cover_and_satisfy_every_requirement():
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    known = pins()
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        assert known[name] in requirement.specifier, requirement


def test_what_the_package_imports_is_declared():
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    # Two come with gradio and transformers, whose interfaces take their objects.
    declared = {canonicalize_name(Requirement(one).name) for one in [*wanted, "starlette", "tokenizers"]}
    installed = packages_distributions()
    # `isolated` runs in an environment of its own.
    for path in [path for path in (ROOT / "src").rglob("*.py") if "isolated" not in path.parts]:
        names = imported(ast.parse(path.read_text(encoding="utf-8")))
        for name in names - sys.stdlib_module_names - {"advflyp"}:
            found = {canonicalize_name(one) for one in installed[name]}
            assert declared & found, f"{path.name} imports {name}"


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def test_version_is_the_same_everywhere():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the Makefile's set-up looks at, under a path with spaces, as if installed a moment ago."""
    folder = tmp_path / "my own checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (1_000_000, 1_000_000))
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".installed").touch()
    return folder


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "ARGS"))}
    return subprocess.run(
        ["make", *args], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_second_call_installs_nothing(checkout):
    out = make(checkout, "--dry-run", "quickstart").stdout
    assert out.splitlines() == [".venv/bin/advflyp quickstart "]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again(checkout, name):
    os.utime(checkout / name, (2**33, 2**33))
    assert "uv pip install" in make(checkout, "--dry-run", "test").stdout


def test_an_old_python_is_named(checkout):
    (checkout / ".venv" / ".installed").unlink()
    old = checkout / "old python"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n', encoding="utf-8"
    )
    old.chmod(0o755)
    result = make(checkout, "install", f"PYTHON={old}")
    assert result.returncode != 0
    assert "Python 3.9.2 is too old: advflyp needs Python 3.11 or newer" in result.stderr
    assert not (checkout / ".venv" / ".installed").exists()


def test_a_missing_python_is_named(checkout):
    (checkout / ".venv" / ".installed").unlink()
    result = make(checkout, "install", "PYTHON=no-such-python")
    assert result.returncode != 0
    assert "There is no 'no-such-python'" in result.stderr
