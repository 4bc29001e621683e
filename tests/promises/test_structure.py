"""The rooms of the package: imports go down only, without a circle.

All imports count: those at the top of a file, inside functions, and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "isanet"

# From bottom to top. Rooms on one floor know nothing of each other.
FLOORS = (
    ("errors", "labels", "protocols", "config", "_version", "_files", "_text", "_progress", "_processes"),
    ("images", "weights"),
    ("attention", "backbone", "model"),
    ("viz", "toystreets"),
    ("zoo", "datasets"),
    ("inference",),
    ("evaluation", "exporting"),
    ("training",),
    ("tools",),
    ("__init__", "metrics"),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SHARED_FLOORS = (0, 2, 9)  # of single files, which may import each other as long as there is no circle

MAX_LINES = 450


def modules(package: Path) -> dict[str, Path]:
    """Every module by its dotted name below the package; the package itself is `__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Iterable[str]) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            base = node.module or ""
            known_base = base.removeprefix("isanet").removeprefix(".")
            for alias in node.names:
                below = f"{known_base}.{alias.name}".removeprefix(".")
                names.add(f"isanet.{below}" if base.partition(".")[0] == "isanet" and below in known else base)
    inside = {name for name in names if name.partition(".")[0] == "isanet"}
    return {name.removeprefix("isanet").removeprefix(".") or "__init__" for name in inside}


def graph(package: Path) -> dict[str, set[str]]:
    found = modules(package)
    return {name: imported(path, found) - {name} for name, path in found.items()}


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle in order, the first at both ends; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for below in sorted(arrows.get(name, ())):
            if found := walk(below, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def upward(arrows: Mapping[str, set[str]]) -> list[str]:
    """Imports of a higher floor, or of another room on the same one."""
    wrong = []
    for name, below in arrows.items():
        room = name.partition(".")[0]
        for other in sorted(below):
            target = other.partition(".")[0]
            difference = FLOOR_OF[target] - FLOOR_OF[room]
            if difference > 0 or (difference == 0 and target != room and FLOOR_OF[room] not in SHARED_FLOORS):
                wrong.append(f"{name} -> {other}")
    return wrong


def test_every_module_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in modules(PACKAGE)} <= set(FLOOR_OF)


def test_imports_go_down_only() -> None:
    wrong = upward(graph(PACKAGE))
    assert not wrong, "\n".join(wrong)


def test_imports_have_no_circle() -> None:
    found = circle(graph(PACKAGE))
    assert not found, " -> ".join(found)


@pytest.mark.parametrize(
    ("extra", "wrong"),
    [
        ("def f():\n    from isanet.cli import run\n", ["weights.cache -> cli.run"]),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import isanet.zoo.released\n",
            ["weights.cache -> zoo.released"],
        ),
        ("from isanet import images\n", ["weights.cache -> images"]),
        ("from isanet.weights import manifest\nfrom isanet import errors\n", []),
    ],
)
def test_an_upward_import_is_seen_wherever_it_stands(tmp_path: Path, extra: str, wrong: list[str]) -> None:
    for name in ("weights/cache", "weights/manifest", "cli/run", "zoo/released", "images/__init__", "errors"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(extra if name == "weights/cache" else "")
    assert upward(graph(tmp_path)) == wrong


def test_a_circle_is_shown_with_its_path(tmp_path: Path) -> None:
    for name, below in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        (tmp_path / f"{name}.py").write_text(f"from isanet import {below}\n")
    assert circle(graph(tmp_path)) == ["a", "b", "c", "a"]


def test_no_file_of_code_is_too_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules(PACKAGE).items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
