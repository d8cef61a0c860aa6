"""The house rules that a program can check: who imports whom, and what exists exactly once."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = [
    {"compat", "errors", "types", "reporting", "registry"},
    {"configs"},
    {"method", "store"},
    {"data"},
    {"tokens", "devices"},
    {"logprobs"},
    {"models"},
    {"training", "demo", "generation"},
    {"evaluation", "benchmarks"},
    {"report"},
]
"""the rooms, lowest first: each imports what lies below it, and rooms beside each other do not; verbs come last"""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
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
    """The name below `stages` that decides a module's layer, such as `models` or `score`."""
    return module.split(".")[1] if module.count(".") else ""


def test_imports_run_one_way():
    """A room imports rooms below it, a verb any room; nobody imports a verb or knows the command line."""
    for module in (each for each in MODULES if each.startswith("stages.")):
        imports, mine = imports_of(module), layer(module)
        assert not {name.split(".")[0] for name in imports} & {"sepo_cli", "typer", "rich"}, module
        for other in {layer(name) for name in imports if name.startswith("stages.")} - {mine}:
            assert other in LEVEL, f"{module} imports the verb {other}"
            assert LEVEL[other] < LEVEL.get(mine, len(ORDER)) or LEVEL[other] == 0, f"{module} imports {other}"


def test_every_room_says_what_it_is_for():
    rooms = [path for path in (ROOT / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert {room.name for room in rooms} == set(LEVEL) - ORDER[0]
    for room in rooms:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        assert "May import" in said, room.name
        assert "On disk" in said, room.name


def test_only_the_log_prob_primitive_shifts():
    shift = re.compile(r"\[:, ?1:\]|\[\.\.\., ?1:\]|\[:, ?:-1|positions_K|targets_K - 1|(places_N|offsets) - 1")
    guilty = [path.name for path in (ROOT / "stages").rglob("*.py") if shift.search(path.read_text())]
    # Where logits stand: in padded rows, and in packed ones.
    assert sorted(guilty) == ["logps.py", "packing.py"]


def private_names(tree):
    """Names with one underscore that a module takes from elsewhere than itself."""
    own = {*_NAMED_TUPLE, *(node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)))}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            and getattr(node.value, "id", "") == "self"}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr) and node.attr not in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}) and node.attr != "_exit":
                yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"getattr", "setattr", "hasattr"}:
            name = getattr(node.args[1], "value", "")
            yield from [name] if isinstance(name, str) and re.match("_[a-z]", name) else []


_NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}


def test_private_names_of_libraries_stand_in_one_file():
    guilty = {
        str(path.relative_to(ROOT)): found
        for folder in ("stages", "sepo_cli")
        for path in (ROOT / folder).rglob("*.py")
        if (found := [*private_names(ast.parse(path.read_text()))])
    }
    assert {*guilty} == {"stages/compat.py"}, guilty
    assert {"_attn_implementation", "_DropoutNd", "_reset_state"} <= {*guilty["stages/compat.py"]}


def test_files_stay_short():
    long = [
        path.name
        for folder in ("stages", "sepo_cli")
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text().count("\n") > 400
    ]
    assert long == []


def test_no_class_has_the_name_of_another():
    files = [ROOT / (module.replace(".", "/") + ".py") for module in MODULES]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    names = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    assert sorted(name for name in {*names} if names.count(name) > 1) == []
