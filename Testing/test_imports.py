"""The library's borders: what importing it needs, what it never needs, and the Python that it is written in."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "MSTKDSegment" / "MSTKDSegmentLib"
FILES = sorted(LIBRARY.rglob("*.py"))
BLOCKED = (
    *("torch", "slicer", "vtk", "qt", "ctk", "monai", "matplotlib", "rich", "training"),
    *("vtkmodules", "trame", "trame_slicer", "aiohttp"),
)
# Two are torch code, imported inside functions only; the others are for Slicer.
NEEDS_MORE = {"network", "brain_network", *(path.stem for path in FILES if path.stem.startswith("slicer_"))}
SLICER_SIDE = {"slicer", "vtk", "qt", "ctk"}
# The browser application: these of its files may import what the extra `review` brings, the others are plain.
REVIEW_APP = LIBRARY / "review_app"
BROWSER_SIDE = {
    *(
        "app",
        "display",
        "judging",
        "layout",
        "layout_left",
        "layout_parts",
        "layout_right",
        "measuring",
        "runs",
        "scene",
    ),
    *("security", "server", "views"),
}
BROWSER_PACKAGES = {"slicer", "vtkmodules", "trame", "trame_slicer", "aiohttp"}

IMPORT_ALL = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(name + " is blocked")

blocked, modules = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocker())
for name in modules:
    importlib.import_module(name)
print("RESULT" + json.dumps(sorted({name.split(".")[0] for name in sys.modules} & set(blocked))))
"""


def imported_roots(tree: ast.AST) -> set:
    """The top-level names of all absolute imports, at file scope and inside functions."""
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots


def test_the_library_imports_without_torch_slicer_and_the_rest():
    modules = [path.relative_to(LIBRARY.parent).with_suffix("") for path in FILES if path.stem != "__init__"]
    names = ["MSTKDSegmentLib", *(".".join(module.parts) for module in modules)]
    more = {*NEEDS_MORE, *(f"MSTKDSegmentLib.review_app.{stem}" for stem in BROWSER_SIDE)}
    wanted = [name for name in names if name not in more and name.split(".")[-1] not in more]
    assert len(wanted) > 10
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps([BLOCKED, wanted])]
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.split("RESULT")[1]) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_python_3_9_and_keeps_the_borders(path):
    # feature_version refuses `match` and parenthesised `with` where it can; the walk makes sure of `match`.
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 9))
    assert not [node.lineno for node in ast.walk(tree) if type(node).__name__ == "Match"]
    roots = imported_roots(tree)
    assert "training" not in roots
    if path.parent == REVIEW_APP and path.stem in BROWSER_SIDE:
        assert not roots & (SLICER_SIDE - {"slicer"})
    elif not path.stem.startswith("slicer_"):
        assert not roots & (SLICER_SIDE | BROWSER_PACKAGES)


def test_nothing_else_imports_the_browser_application():
    for path in FILES:
        if path.parent != REVIEW_APP and path.stem != "cli":
            assert "review_app" not in path.read_text(encoding="utf-8"), path
    top = ast.parse((LIBRARY / "cli.py").read_text(encoding="utf-8")).body
    assert not [node for node in top if isinstance(node, ast.ImportFrom) and "review_app" in (node.module or "")]


def test_training_imports_nothing_of_slicer():
    for path in (ROOT / "training").rglob("*.py"):
        assert not imported_roots(ast.parse(path.read_text(encoding="utf-8"))) & SLICER_SIDE, path


def test_borders_are_really_watched():
    source = "def f():\n    from training.engine import train\n    import vtk.util\n"
    assert imported_roots(ast.parse(source)) == {"training", "vtk"}
