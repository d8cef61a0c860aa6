"""The house rules that a program can check: who imports whom, and what exists exactly once."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {"catalogue", "configs", "evaluation_config", "errors", "currency", "reporting"}
PACKAGES = {"method", "data", "model", "store"}
MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for folder in ("stages", "sepo_cli")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__main__.py"
)


def imports_of(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def layer(module):
    """The name below `stages` that decides a module's layer, such as `model` or `score`."""
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module.removesuffix(".__init__"))


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("stages.")])
def test_stages_do_not_know_the_command_line(module):
    tops = {name.split(".")[0] for name in imports_of(module)}
    assert not tops & {"sepo_cli", "typer", "rich"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("stages.")])
def test_imports_run_one_way(module):
    """verbs -> {method, data, model, store} -> leaves; a verb never imports a verb, the science imports leaves only."""
    inside = {layer(name) for name in imports_of(module) if name.startswith("stages.")}
    mine = layer(module)
    if mine in LEAVES:
        assert inside <= LEAVES
    elif mine == "method":
        assert inside <= LEAVES | {"method"}
    elif mine == "store":
        assert inside <= LEAVES | {"store"}
    elif mine == "data":
        assert inside <= LEAVES | {"data", "store"}
    elif mine == "model":
        # The loop watches what it trains by functions of the science, which knows nothing of it.
        assert inside <= LEAVES | {"model", "store", "method"}
    else:
        assert inside <= LEAVES | PACKAGES


def test_only_the_log_prob_primitive_shifts():
    shift = re.compile(r"\[:, ?1:\]|\[\.\.\., ?1:\]|\[:, ?:-1|positions_K|targets_K - 1|places(_N)? - 1")
    guilty = [path.name for path in (ROOT / "stages").rglob("*.py") if shift.search(path.read_text())]
    # Where logits stand: in padded rows, and in packed ones.
    assert sorted(guilty) == ["logps.py", "packing.py"]


def test_files_stay_short():
    long = [
        path.name
        for folder in ("stages", "sepo_cli")
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text().count("\n") > 400
    ]
    assert long == []
