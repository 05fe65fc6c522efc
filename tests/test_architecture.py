"""The layers of docs/architecture.md hold: imports point down only, and only the edges know MONAI Label."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parent.parent / "apps" / "medsa"

LAYERS = (
    ("environment", "errors", "files", "memory", "version"),
    ("device_memory", "readers", "settings"),
    ("volume", "prompts", "transforms", "model"),
    ("bases", "dicom", "download", "embeddings", "honour", "propagation", "turns"),
    ("conversation", "object_query", "voxels"),
    ("predictor",),
    ("evaluation",),
    ("training", "pretraining"),
    ("datastore", "infers", "trainers", "scoring", "activelearning"),
    ("server",),
    ("commands",),
    ("main", "cli"),
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
MAY_IMPORT_MONAILABEL = {"infers", "trainers", "scoring", "activelearning", "datastore", "server", "main"}
MODEL_MAY_IMPORT = {"torch", "segment_anything", "safetensors"}


def source_files() -> list[Path]:
    return sorted([*(APP / "lib").rglob("*.py"), *APP.glob("*.py")])


def unit_of(path: Path) -> str:
    """The module or package directly under lib (or the app) that a file belongs to; "" for lib itself."""
    parts = path.relative_to(APP).with_suffix("").parts
    if parts[0] != "lib":
        return parts[0]
    return "" if parts[1] == "__init__" else parts[1]


def imported_modules(source: str) -> list[str]:
    """All modules imported anywhere in `source`, also in functions; a relative import starts with a dot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [f"{base}.{alias.name}" if base == "lib" else base for alias in node.names]
    return found


def layer_faults(files: dict[str, list[str]]) -> list[str]:
    """What is wrong with the imports of `files`: unit -> modules it imports."""
    faults = []
    for unit, modules in files.items():
        for module in modules:
            head, _, rest = module.partition(".")
            target = rest.partition(".")[0] if head == "lib" else head
            own = head in ("lib", "main", "cli")
            if not head:
                faults.append(f"{unit} imports {module}: relative")
            elif own and not {unit, target} <= set(RANK):
                faults.append(f"{unit} imports {module}: in no layer")
            elif own and RANK[target] > RANK[unit]:
                faults.append(f"{unit} imports {module}: upwards")
            elif head == "monailabel" and unit not in MAY_IMPORT_MONAILABEL:
                faults.append(f"{unit} imports {module}: not an edge")
    return faults


@pytest.fixture(scope="module")
def imports() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in source_files():
        modules = imported_modules(path.read_text(encoding="utf-8"))
        if unit := unit_of(path):
            found.setdefault(unit, []).extend(modules)
        else:
            assert modules == [], "lib/__init__.py imports nothing"
    return found


def test_walks_all_units(imports: dict[str, list[str]]) -> None:
    assert set(imports) == set(RANK)
    assert len(source_files()) >= 45


def test_imports_point_down(imports: dict[str, list[str]]) -> None:
    assert layer_faults(imports) == []


@pytest.mark.parametrize(
    ("unit", "module", "reason"),
    [
        ("volume", "lib.predictor", "upwards"),
        ("errors", "lib.settings", "upwards"),
        ("training", "lib.infers.medsa_infer", "upwards"),
        ("server", "main", "upwards"),
        ("predictor", "lib.nowhere", "in no layer"),
        ("predictor", ".embeddings", "relative"),
        ("cli", "monailabel.client", "not an edge"),
        ("training", "monailabel", "not an edge"),
    ],
)
def test_a_wrong_import_is_found(unit: str, module: str, reason: str) -> None:
    faults = layer_faults({unit: [module]})
    assert len(faults) == 1
    assert faults[0].endswith(reason)


def test_units_import_each_other_in_one_direction(imports: dict[str, list[str]]) -> None:
    graph = {
        unit: {m.split(".")[1] for m in modules if m.startswith("lib.")} - {unit}
        for unit, modules in imports.items()
    }
    assert sum(map(len, graph.values())) > 20
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"units import each other in a circle: {error.args[1]}")
    assert order.index("errors") < order.index("predictor") < order.index("infers")


def test_model_runs_without_the_product(imports: dict[str, list[str]]) -> None:
    modules = imports["model"]
    foreign = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"lib"}
    assert foreign <= MODEL_MAY_IMPORT
    assert "torch" in foreign
    own = {module for module in modules if module.split(".")[0] == "lib"}
    assert {
        module for module in own if not module.startswith(("lib.errors", "lib.files", "lib.model"))
    } == set()


def test_no_module_hides_a_standard_one() -> None:
    # MONAI Label's loader puts the app folder in front of sys.path.
    parts = {part for path in source_files() for part in path.relative_to(APP).with_suffix("").parts}
    names = parts - {"__init__"}
    third_party = {
        "torch",
        "monai",
        "monailabel",
        "numpy",
        "yaml",
        "nrrd",
        "nibabel",
        "scipy",
        "segment_anything",
    }
    assert names & (sys.stdlib_module_names | third_party) == set()
    assert "settings" in names


def test_finds_imports_wherever_they_stand() -> None:
    source = """
import os.path
from lib import volume
def f():
    from lib.model.base import x
    from . import y
"""
    assert sorted(imported_modules(source)) == [".", "lib.model.base", "lib.volume", "os.path"]
