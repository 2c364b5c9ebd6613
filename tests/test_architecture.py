"""The picture in docs/architecture.md is true: every module has a room, and imports run one way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "coeff_diffusion"


def rooms(text: str) -> list[str]:
    """The rooms of the table, in its order."""
    table = text.split("## Rooms")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)(?:\.py|/)`", table, re.MULTILINE)


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by their dotted names below it; the package's own `__init__.py` is left out."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if name := ".".join(part for part in parts if part != "__init__"):
            found[name] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, relatively or by their full names: at its top, late in a function,
    for types alone, or by `import_module` with a name that stands there."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]

    def absolute(written: str, level: int = 0) -> str | None:
        """The name below the package; None for a module of somebody else's."""
        if not level:
            return written.partition(".")[2] if written.partition(".")[0] == PACKAGE.name else None
        return ".".join(filter(None, [*package[: len(package) - level + 1], written]))

    found: list[str | None] = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom() if (start := absolute(node.module or "", node.level)) is not None:
                inner = [f"{start}.{alias.name}".lstrip(".") for alias in node.names]
                found += [one if one in known else start for one in inner]
            case ast.Import():
                found += [absolute(alias.name) for alias in node.names]
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(to)), *_]):
                if call in ("import_module", "__import__"):
                    found.append(absolute(to.lstrip("."), len(to) - len(to.lstrip("."))))
    yield from (target for target in found if target in known and target != name)


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle of imports, each file importing the next; empty where there is none."""
    done: set[str] = set()

    def walk(path: list[str]) -> list[str]:
        for other in sorted(arrows[path[-1]]):
            if other in path:
                return [*path[path.index(other) :], other]
            if other not in done and (found := walk([*path, other])):
                return found
        done.add(path[-1])
        return []

    return next((found for name in arrows if name not in done and (found := walk([name]))), [])


def arrows_of(package: Path) -> dict[str, set[str]]:
    known = modules(package)
    return {name: set(imported(name, path, known)) for name, path in known.items()}


def libraries(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names}


def users(library: str) -> set[str]:
    return {name for name, path in modules(PACKAGE).items() if library in libraries(path)}


def test_every_module_has_a_room() -> None:
    table = rooms((ROOT / "docs" / "architecture.md").read_text())
    assert sorted(table) == sorted({name.split(".")[0] for name in modules(PACKAGE)})


def test_imports_run_one_way() -> None:
    table = rooms((ROOT / "docs" / "architecture.md").read_text())
    upwards = [
        f"{name} imports {other}, which comes later"
        for name, others in arrows_of(PACKAGE).items()
        for other in sorted(others)
        if table.index(other.split(".")[0]) > table.index(name.split(".")[0])
    ]
    assert upwards == []


def test_no_imports_go_round_in_a_circle() -> None:
    assert circle(arrows_of(PACKAGE)) == []


@pytest.mark.parametrize(
    "late",
    [
        "from .low import x",
        "def f():\n    from .low import x",
        "if TYPE_CHECKING:\n    from . import low",
        "def f():\n    from .inner import low",
        "import coeff_diffusion.low",
        "import torch, coeff_diffusion.low as below",
        "def f():\n    from coeff_diffusion.low import x",
        "from coeff_diffusion import low",
        "from coeff_diffusion.inner import low",
        "def f():\n    return importlib.import_module('coeff_diffusion.low').x",
        "def f():\n    return import_module('.low', __package__).x",
        "x = __import__('coeff_diffusion.inner.low')",
    ],
)
def test_a_circle_is_found_however_it_is_closed(tmp_path: Path, late: str) -> None:
    inner = "low" if "inner" not in late else "inner/low"
    (tmp_path / "inner").mkdir()
    (tmp_path / f"{inner}.py").write_text(f"from {'.' * (1 + inner.count('/'))}high import y")
    (tmp_path / "high.py").write_text(late)
    found = circle(arrows_of(tmp_path))
    assert found[0] == found[-1]
    assert set(found) == {"high", inner.replace("/", ".")}


@pytest.mark.parametrize(
    "other",
    [
        "import low",
        "from coeff_diffusion_extras import low",
        "import torch.low",
        "from high import x",
        "x = import_module(name)",
        "y = 'coeff_diffusion.low'",
        "def f():\n    run('coeff_diffusion.low')",
    ],
)
def test_what_is_no_import_of_the_package(tmp_path: Path, other: str) -> None:
    (tmp_path / "low.py").touch()
    (tmp_path / "high.py").write_text(other)
    assert arrows_of(tmp_path) == {"high": set(), "low": set()}


def test_heavy_libraries_stay_where_they_belong() -> None:
    assert {name.split(".")[0] for name in users("gradio")} == {"ui"}
    assert users("accelerate") == {"training.trainer"}
    assert users("efficientnet_lite_pytorch") == set()


def test_subjects_need_torch_and_safetensors_alone() -> None:
    allowed = {"torch", "safetensors", "jaxtyping", "coeff_diffusion", *__import__("sys").stdlib_module_names}
    strange = {name: libraries(path) - allowed for name, path in modules(PACKAGE / "subject").items()}
    assert {name: found for name, found in strange.items() if found} == {}


def test_the_house_has_few_rooms_at_its_door() -> None:
    """What a newcomer meets first: files and folders of the repository and of the package."""
    hidden = {"__pycache__", "build", "dist", "outputs"}
    top = [path for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"]
    inside = [path for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"]
    code = [path.name for path in (*top, *inside) if path.name not in hidden and not path.name.startswith((".", "_"))]
    assert len([name for name in code if not name.endswith(".egg-info")]) <= 25
