# SPDX-License-Identifier: Apache-2.0
"""Holds the imports of every module to the floors of the design: they only go down."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lvqcodec.errors

PACKAGE = Path(lvqcodec.errors.__file__).parent

# from the ground up; a module may import its own floor and those below
FLOORS = (
    (
        *("errors", "files", "interrupts", "config", "catalog", "threads", "progress", "suffixes"),
        *("options", "format", "resources"),
    ),
    ("metrics", "pictures", "coding"),
    ("guard", "distortion", "model.layers", "model.integer", "model.lattices"),
    ("model.transforms", "model.entropy", "model.quantizer"),
    ("model.likelihood", "model.surrogates"),
    ("model",),
    ("stream", "reconstruction", "training"),
    ("encoder",),
    ("codec",),
    ("evaluation", "batch", "plugin"),
    ("cli",),
    ("__main__",),
)
# none of these imports another
APART = (
    ("model.transforms", "model.entropy", "model.quantizer"),
    ("stream", "training"),
    ("reconstruction", "training"),
    ("encoder", "training"),
    ("codec", "training"),
)
# who may import a third-party package, at most
ONLY = {
    "click": ("cli", "__main__"),
    "tqdm": ("cli.progress",),
    "constriction": ("coding.rangecoder",),
    "PIL": ("pictures", "evaluation.codecs", "plugin", "training"),
}
# what a module may load inside a function, though its floor has no use for it
LATE = {"metrics": {"torch"}, "threads": {"torch"}}
NUMPY_FROM = 1
TORCH_FROM = 2
THIRD_PARTY_BELOW_TORCH = {"numpy", "PIL", "constriction"}
CLI_TOP = {"cli", *FLOORS[0]}
# the commands whose bodies may reach into training/
TRAINING_COMMANDS = ("*train*", "*export*", "*refit*")


@dataclass(frozen=True)
class Import:
    """One import: of which module (inside the package without its name), in which function."""

    module: str
    internal: bool
    function: str
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PLACED = [name for name in MODULES if name]


def imports(name: str, path: Path) -> list[Import]:
    """All imports of a module, those inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def resolve(node: ast.ImportFrom) -> Iterator[tuple[str, bool]]:
        base, internal = node.module or "", False
        if node.level:
            up = package.split(".") if package else []
            up = up[: len(up) - node.level + 1]
            base, internal = ".".join([*up, base] if base else up), True
        elif base.split(".")[0] == "lvqcodec":
            base, internal = base[len("lvqcodec.") :], True
        for alias in node.names:
            inner = f"{base}.{alias.name}" if base else alias.name
            yield (inner if internal and inner in MODULES else base), internal

    def visit(node: ast.AST, function: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                internal = top == "lvqcodec"
                yield Import(rest if internal else alias.name, internal, function, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for module, internal in resolve(node):
                yield Import(module, internal, function, node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = function or node.name
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    return list(visit(ast.parse(path.read_text(encoding="utf-8")), ""))


IMPORTS = {name: imports(name, path) for name, path in MODULES.items()}


def room(name: str, rooms: Iterable[str]) -> str | None:
    """The innermost of the rooms (modules or packages) that a module lives in."""
    found = (r for r in rooms if name == r or name.startswith(f"{r}."))
    return max(found, key=len, default=None)


def floor(name: str) -> int | None:
    floors = {r: number for number, rooms in enumerate(FLOORS) for r in rooms}
    own = room(name, floors)
    return None if own is None else floors[own]


def top(name: str) -> str:
    return name.partition(".")[0]


def where(name: str, entry: Import) -> str:
    return f"{name or '__init__'} line {entry.line} imports {entry.module or 'lvqcodec'}"


def test_the_reader_of_imports_sees_all_kinds(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import os.path\nimport lvqcodec.errors\nfrom lvqcodec import errors\nfrom lvqcodec.errors "
        "import LvqError\nfrom ..errors import LvqError\nfrom . import tables\nclass C:\n"
        "    def f(self):\n        if 1:\n            from torch import nn\n"
    )
    found = [(entry.module, entry.internal) for entry in imports("coding.x", path)]
    errors = ("errors", True)
    tables = ("coding", True)
    assert found == [("os.path", False), errors, errors, errors, errors, tables, ("torch", False)]
    assert imports("coding.x", path)[-1].function == "f"


@pytest.mark.parametrize("name", PLACED)
def test_imports_only_go_down(name):
    own = floor(name)
    assert own is not None, f"give {name} a floor in FLOORS"
    for entry in IMPORTS[name]:
        if entry.internal and entry.module:
            below = floor(entry.module)
            assert below is not None and below <= own, where(name, entry)


@pytest.mark.parametrize("name", PLACED)
def test_no_axis_imports_another(name):
    for apart in APART:
        own = room(name, apart)
        for entry in IMPORTS[name]:
            other = room(entry.module, apart) if entry.internal else None
            assert own is None or other in (own, None), where(name, entry)


def test_there_is_no_circle():
    """Of modules that import each other when they are loaded; what functions import may."""
    graph = {
        name: {e.module for e in IMPORTS[name] if e.internal and e.module and not e.function}
        for name in PLACED
    }
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:  # what is for the type checker alone is not loaded
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                loaded = [e for e in IMPORTS[name] if e.line not in lines and not e.function]
                graph[name] = {e.module for e in loaded if e.internal and e.module}
    order = TopologicalSorter({name: targets - {name} for name, targets in graph.items()})
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", MODULES)
def test_training_is_imported_by_training_alone(name):
    if top(name) == "training":
        return
    for entry in IMPORTS[name]:
        allowed = top(name) == "cli" and any(
            fnmatchcase(entry.function, command) for command in TRAINING_COMMANDS
        )
        assert allowed or not (entry.internal and top(entry.module) == "training"), where(
            name, entry
        )


@pytest.mark.parametrize("name", MODULES)
def test_third_party_packages_stay_in_their_place(name):
    own = floor(name) or 0
    for entry in IMPORTS[name]:
        package = top(entry.module)
        if entry.internal or package in sys.stdlib_module_names:
            continue
        allowed = ONLY.get(package)
        assert allowed is None or room(name, allowed), where(name, entry)
        late = entry.function and package in LATE.get(name, ())
        if own < TORCH_FROM and not late:
            assert own >= NUMPY_FROM and package in THIRD_PARTY_BELOW_TORCH, where(name, entry)


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) == "cli"])
def test_cli_is_thin_at_the_top(name):
    for entry in IMPORTS[name]:
        if entry.internal and not entry.function:
            assert entry.module == "" or room(entry.module, CLI_TOP), where(name, entry)
        elif not entry.function:
            allowed = {"click", *sys.stdlib_module_names}
            assert top(entry.module) in allowed, where(name, entry)


def test_header_reading_leaves_torch_and_numpy_unloaded():
    code = """
import sys
import lvqcodec
from lvqcodec.catalog import list_models
from lvqcodec.format.container import Header, Section, pack, read_header
read_header(pack(Header(1, 1, 3, 50, "z", b"abcd"), [Section(1, b"")]))
list_models()
print(*sorted({"torch", "numpy", "PIL", "constriction"} & set(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""
