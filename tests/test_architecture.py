"""Imports run downwards: a folder imports the ones above it in this list, and only `cli` imports `tools`."""

import ast
from pathlib import Path

import pytest

# `distrijax/public.py` holds the public names, which `__init__` passes on. The data of `demo` may be imported by all.
ORDER = [
    "errors", "checks", "config", "nn", "models", "parallel", "runtime", "schedulers", "checkpoint", "adapters", "text",
    "sampling", "pipelines", "public", "__init__", "tools", "cli", "__main__",
]  # fmt: skip
PACKAGE = Path(__file__).parents[1] / "distrijax"

pytestmark = pytest.mark.fast


def imported_rooms(file: Path) -> set[str]:
    """Return the folders of the package that `file` imports, inside functions and for type checkers, too."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    assert not any(getattr(node, "level", 0) for node in nodes), f"{file}: write imports in full"
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names]
    second = {f"{name}.__init__".split(".")[1] for name in names if name.split(".")[0] == "distrijax"}
    return {name if name in (*ORDER, "demo") else "__init__" for name in second}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downwards(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    upward = {other for other in imported_rooms(file) - {"demo"} if ORDER.index(other) > ORDER.index(room)}
    assert not upward, f"{room} may import only what stands before it in ORDER, but {file} imports {upward}"
    assert "tools" not in imported_rooms(file) or room in ("tools", "cli")
