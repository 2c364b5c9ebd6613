"""The picture in docs/architecture.md is true: every module has a room, and imports run one way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "coeff_diffusion"
# What the page says about imports that run the other way.
EXCEPTIONS = {("cards", "qr")}


def rooms() -> dict[str, int]:
    """The row of each module in the table of rooms."""
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Rooms")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name: row for row, cell in enumerate(rows) for name in re.findall(r"`(\w+)(?:\.py|/)`", cell)}


def modules() -> dict[str, list[ast.Module]]:
    """The parsed files of each top-level module of the package; a folder is one module."""
    found: dict[str, list[ast.Module]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(ast.parse(path.read_text()))
    return found


def imported(tree: ast.Module, package: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, at its top or later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            first = (node.module or "").split(".")[0]
            yield from ({first} if first else {alias.name for alias in node.names}) & package


def libraries(tree: ast.Module) -> set[str]:
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names}


def test_every_module_has_a_room() -> None:
    assert rooms().keys() == modules().keys()


def test_imports_run_one_way() -> None:
    row, found = rooms(), modules()
    upwards = [
        f"{name} imports {other}, which comes later"
        for name, trees in found.items()
        for tree in trees
        for other in imported(tree, set(found) - {name})
        if row[other] > row[name] and (name, other) not in EXCEPTIONS
    ]
    assert upwards == []


def test_heavy_libraries_stay_where_they_belong() -> None:
    users = {
        library: {name for name, trees in modules().items() if any(library in libraries(tree) for tree in trees)}
        for library in ("gradio", "accelerate", "efficientnet_lite_pytorch")
    }
    assert users["gradio"] == {"ui"}
    assert users["accelerate"] == {"trainer"}
    assert users["efficientnet_lite_pytorch"] == {"features"}
