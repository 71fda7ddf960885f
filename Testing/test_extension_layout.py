"""What Slicer's build, its module scan and a reviewer of the Extensions Index look at, checked without Slicer."""

from __future__ import annotations

import ast
import json
import re
import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE_FOLDER = ROOT / "MSTKDSegment"
MODULE = MODULE_FOLDER / "MSTKDSegment.py"
ALLOWED_IMPORTS = {"slicer", "vtk", "qt", "ctk", "SimpleITK", "numpy", "scipy", "MSTKDSegmentLib"}
# Training writes it; a checkout from before that lacks it, and the build then says so.


def cmake_values(path: Path) -> dict:
    """Every set(NAME value ...) of a CMake file, with ${MODULE_NAME} filled in."""
    text = re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = re.findall(r"set\((\w+)\s+([^)]*)\)", text)
    return {
        name: [
            quoted or bare
            for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', value.replace("${MODULE_NAME}", "MSTKDSegment"))
        ]
        for name, value in found
    }


def test_every_script_on_disk_is_installed_and_the_other_way_round():
    listed = cmake_values(MODULE_FOLDER / "CMakeLists.txt")["MODULE_PYTHON_SCRIPTS"]
    library = {path.relative_to(MODULE_FOLDER).as_posix() for path in MODULE_FOLDER.glob("MSTKDSegmentLib/**/*.py")}
    assert len(listed) == len(set(listed))
    assert set(listed) == {"MSTKDSegment.py", *library}


def test_every_resource_on_disk_is_installed_and_the_other_way_round():
    listed = cmake_values(MODULE_FOLDER / "CMakeLists.txt")["MODULE_PYTHON_RESOURCES"]
    files = [path for path in (MODULE_FOLDER / "Resources").rglob("*") if path.is_file()]
    on_disk = {path.relative_to(MODULE_FOLDER).as_posix() for path in files if not path.name.startswith(".")}
    assert len(listed) == len(set(listed))
    assert set(listed) == on_disk


def test_only_the_module_and_its_library_are_installed():
    # Slicer puts the module's folder on the path of all modules: another package there would be everybody's.
    packages = {path.name for path in MODULE_FOLDER.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages == {"MSTKDSegmentLib"}
    assert [path.name for path in MODULE_FOLDER.glob("*.py")] == ["MSTKDSegment.py"]


def test_the_extensions_metadata_is_complete():
    values = cmake_values(ROOT / "CMakeLists.txt")
    assert values["EXTENSION_DEPENDS"] == ["PyTorch"]
    assert values["EXTENSION_CATEGORY"] == ["Segmentation"]
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS"):
        assert values[f"EXTENSION_{name}"][0], name
    assert values["EXTENSION_HOMEPAGE"][0].endswith("/SlicerMSTKDSegment")
    assert values["EXTENSION_ICONURL"][0].endswith("/main/MSTKDSegment.png")
    # Separated by blanks, each a file of this repository.
    for url in values["EXTENSION_SCREENSHOTURLS"][0].split():
        assert (ROOT / url.split("/main/")[1]).is_file(), url
    # CMake splits a list at semicolons, which would cut the description short.
    assert ";" not in values["EXTENSION_DESCRIPTION"][0]


def test_slicers_macros_stand_in_their_order():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    order = (
        "project(MSTKDSegment)",
        "find_package(Slicer REQUIRED)",
        "include(${Slicer_USE_FILE})",
        "add_subdirectory(MSTKDSegment)",
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})",
        "include(${Slicer_EXTENSION_CPACK})",
    )
    places = [text.index(line) for line in order]
    assert places == sorted(places)
    module = (MODULE_FOLDER / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "slicerMacroBuildScriptedModule(" in module
    assert "slicer_add_python_unittest(SCRIPT ${MODULE_NAME}.py)" in module


def test_the_index_entry_fits_its_schema():
    entry = json.loads((ROOT / "MSTKDSegment.json").read_text(encoding="utf-8"))
    # The schema's fields (slicer-extension-catalog-entry-schema-v1.0.1); it allows no others.
    allowed = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "build_subdirectory"}
    assert {"$schema", "category", "scm_url"} <= set(entry) <= allowed | {"enabled", "tier"}
    assert re.search(r"slicer-extension-catalog-entry-schema-v\d\.\d\.\d\.json#$", entry["$schema"])
    assert entry["category"] == "Segmentation"
    assert entry["build_dependencies"] == ["PyTorch"]
    assert Path(entry["scm_url"]).stem == "SlicerMSTKDSegment"


@pytest.mark.parametrize("path", [ROOT / "MSTKDSegment.png", MODULE_FOLDER / "Resources/Icons/MSTKDSegment.png"])
def test_the_icons_are_128_by_128(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (128, 128)  # the IHDR chunk comes first


def test_the_licence_is_apache_2():
    text = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").split())
    assert text.startswith("Apache License Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in text


# --- MSTKDSegment.py ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> ast.Module:
    return ast.parse(MODULE.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_the_module_imports_only_what_slicer_has_at_its_start(tree):
    roots = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.split(".")[0])
    if sys.version_info >= (3, 10):
        roots -= sys.stdlib_module_names
    else:
        roots -= {"__future__", "importlib", "logging", "pathlib", "typing"}
    assert roots <= ALLOWED_IMPORTS


def test_the_module_runs_nothing_when_it_is_imported(tree):
    for node in tree.body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        definition = isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef))
        assert is_docstring or definition or _is_plain_data(node), node.lineno


def _is_plain_data(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    ast.literal_eval(node.value)  # raises for anything that would be run
    return True


def test_the_module_has_the_classes_that_slicer_looks_for(tree):
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {f"MSTKDSegment{ending}" for ending in ("", "Widget", "Logic", "Test")} <= classes


def test_no_qt_property_is_called(tree):
    # In PythonQt these are plain values: calling one raises "not callable" only when somebody presses the button.
    properties = {
        "currentText",
        "text",
        "enabled",
        "visible",
        "checked",
        "value",
        "wasCanceled",
        "toolTip",
        "labelText",
    }
    called = [
        node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert [(call.attr, call.lineno) for call in called if call.attr in properties] == []
    connected = [
        call for call in ast.walk(tree) if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "connect"
    ]
    assert connected
    assert all(isinstance(call.args[0], ast.Constant) and len(call.args) == 2 for call in connected)


def test_the_citation_names_the_authors_and_research_use():
    text = " ".join(MODULE.read_text(encoding="utf-8").split())
    assert "Zhu S., Chen Y." in text
    assert "Bridging the Gap in Missing Modalities: Leveraging Knowledge Distillation and Style Matching" in text
    assert "MICCAI 2025" in text
    assert text.count("research use only") >= 2
