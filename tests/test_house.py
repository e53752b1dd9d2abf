"""The house rules: the core never imports the periphery, no module imports itself through others, nothing is long."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "advflyp"
PERIPHERY = ("__main__", "cli", "data.tools", "data.web", "lvlm", "model.interop", "paper", "report", "use")
# What turns names into models may know every format.
EDGE = ("model.from_hub", "model.load")
MAX_FUNCTION, MAX_FILE = 60, 400


def name(path: Path) -> str:
    """The module's name below `advflyp`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}


def imports(module: str) -> set[str]:
    """The modules of the package that one imports, at its top or in a function; for type checkers only is free."""
    typing = {
        inner
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(TREES[module]):
        if (
            node in typing
            or not isinstance(node, ast.ImportFrom)
            or not (node.module or "").startswith("advflyp")
        ):
            continue
        package = (node.module or "").removeprefix("advflyp").lstrip(".")
        for alias in node.names:
            below = f"{package}.{alias.name}".lstrip(".")
            found.add(below if below in SOURCES else package)
    return found - {module, ""}


IMPORTS = {module: imports(module) for module in SOURCES}


def is_periphery(module: str) -> bool:
    return any(module == part or module.startswith(part + ".") for part in PERIPHERY)


def test_the_core_never_imports_the_periphery():
    upward = {
        (module, other)
        for module, others in IMPORTS.items()
        if module and module not in EDGE and not is_periphery(module)
        for other in others
        if is_periphery(other)
    }
    assert not upward


def below(module: str) -> set[str]:
    """What a module imports, what that imports, and so on."""
    seen: set[str] = set()
    waiting = list(IMPORTS[module])
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += IMPORTS[other]
    return seen


def test_no_module_imports_itself_through_others():
    assert not {module for module in SOURCES if module in below(module)}


def first_line(module: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Where a function is counted from. A command's signature and docstring are its options and their help."""
    is_command = module.startswith("cli.") and ast.get_docstring(function) and len(function.body) > 1
    return function.body[1].lineno if is_command else function.lineno


def test_functions_and_files_are_short():
    functions = {
        f"{module}.{node.name}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - first_line(module, node) >= MAX_FUNCTION
    }
    files = {module for module, source in SOURCES.items() if source.count("\n") > MAX_FILE}
    assert not functions
    assert not files
