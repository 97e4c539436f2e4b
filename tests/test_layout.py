"""Imports: within the package down the list of CONTRIBUTING.md, and no slow ones at a start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "salience_detr"

# From the top down: a folder or module may import those below it, never those above it.
FLOORS = [
    "__main__",
    "cli",
    "benchmark",
    "engine",
    "inference",
    "evaluation",
    "export",
    "visualization",
    "predictor",
    "detector",
    "detections",
    "pretrained",
    "config",
    "model_zoo",
    "modeling",
    "checkpoint",
    "data",
    "layers",
    "utils",
]
FLOOR_OF = {name: floor for floor, name in enumerate(FLOORS)}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Return the package's modules that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules else node.module)
    return found & modules


def import_graph() -> dict[str, set[str]]:
    paths = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
    del paths["salience_detr"]  # the face of the package: it imports lazily from every floor
    return {name: imported_modules(path, set(paths)) for name, path in paths.items()}


def test_every_module_stands_on_a_floor() -> None:
    rooms = {name.split(".")[1] for name in import_graph()}
    assert rooms <= set(FLOOR_OF)


def test_imports_go_down() -> None:
    upward = []
    for name, imports in import_graph().items():
        for imported in imports:
            room, imported_room = name.split(".")[1], imported.split(".")[1]
            if FLOOR_OF[imported_room] < FLOOR_OF[room]:
                upward.append(f"{name} imports {imported}")
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph()
    finished: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in finished:
            return
        for imported in sorted(graph[name]):
            visit(imported, [*way, name])
        finished.add(name)

    for name in graph:
        visit(name, [])


def test_training_and_detection_start_without_what_they_need_later_or_never():
    # Matplotlib draws, SciPy matches and joins: each takes a tenth of the start.
    rooms = ("engine.train", "predictor", "modeling.matcher", "inference.merging")
    names = [f"salience_detr.{room}" for room in rooms]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert set(names) <= set(modules)
    assert not {"matplotlib", "scipy.optimize", "scipy.sparse"} & set(modules)
