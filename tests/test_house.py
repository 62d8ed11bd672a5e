"""The rules of the house, checked on the syntax trees: who may import whom, and what no module does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "avtool"
ORDER = (
    {"errors", "runtime", "rotations", "cameras", "jit"},
    {"head"},
    {"gaussians"},
    {"render"},
    {"losses", "metrics", "fit", "cpu_ssim", "stlpips"},
    {"artifacts"},
    {"capture", "tracking"},
    {"prior", "portrait", "synth"},
    {"commands"},
    {"__main__", "manpages"},
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
TALKERS = {"commands", "manpages", "__main__"}
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def module_parts(path: Path) -> list[str]:
    """Dotted name of the package that relative imports start from, as parts below avtool."""
    return list(path.relative_to(PACKAGE).parts[:-1])


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of everything a module imports, inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                here = ["avtool", *module_parts(path)]
                base = here[: len(here) - node.level + 1] + (node.module or "").split(".")
            else:
                base = (node.module or "").split(".")
            base = [part for part in base if part]
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_its_own_room_and_those_above(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in RANK, f"{room} is no room of the house: add it to ORDER"
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] != "avtool" or len(parts) < 2 or parts[1] in ("__version__", room):
            continue
        assert RANK[parts[1]] <= RANK[room], f"{path}:{line}: {room} must not import {parts[1]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_outside_libraries_stay_in_their_rooms(path: Path) -> None:
    room = room_of(path)
    for line, name in imported(path):
        top = name.split(".")[0]
        if top in ("typer", "rich", "click"):
            assert room in TALKERS, f"{path}:{line}: {top} belongs to the commands"
        if top == "gsplat":
            assert room == "render", f"{path}:{line}: gsplat belongs to render"
        assert top not in ("skvideo", "pickle", "anny") or (top == "anny" and "bake" in path.parts) or (
            top == "pickle" and path.stem == "inert_pickle"
        ), f"{path}:{line}: {top} must not be imported"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_what_no_module_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES, f"{path} has outgrown {MAX_LINES} lines: split it"
    tree, lines = ast.parse(text), text.splitlines()
    programs = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    in_programs = {id(inner) for program in programs for inner in ast.walk(program)}
    assert ast.get_docstring(tree) or not text.strip(), f"{path} does not say what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "BaseException")
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert not broad or reraises, f"{path}:{node.lineno}: an except that swallows everything"
            caught_all = isinstance(node.type, ast.Name) and node.type.id == "Exception"
            assert not caught_all or "  # " in lines[node.lineno - 1], f"{path}:{node.lineno}: name the errors, or say why"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            allowed = room_of(path) in TALKERS or id(node) in in_programs
            assert allowed, f"{path}:{node.lineno}: print belongs to the commands and to main()"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            owner = node.func.value
            assert not (isinstance(owner, ast.Name) and owner.id == "pickle"), f"{path}:{node.lineno}: runs code"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_public_functions_are_annotated_and_documented(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        # Compiled kernels are exempt: numba infers the types of their arrays.
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.decorator_list:
            continue
        assert ast.get_docstring(node), f"{path}:{node.lineno}: {node.name} has no docstring"
        arguments = [a for a in node.args.args + node.args.kwonlyargs if a.annotation is None]
        assert not arguments, f"{path}:{node.lineno}: {node.name} takes {arguments[0].arg} without an annotation"


def test_the_command_modules_import_nothing_heavy_at_the_top() -> None:
    light = {"typer", "rich"}
    for path in sorted((PACKAGE / "commands").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [(node.module or "").split(".")[0]]
            else:
                continue
            heavy = {"torch", "numpy", "numba", "scipy", "skimage", "PIL", "lpips", "avtool"} - light
            assert not heavy & set(names), f"{path}:{node.lineno}: import {names} inside the command"


def test_there_is_no_utils_room() -> None:
    assert not [path for path in PACKAGE.rglob("*") if path.stem in ("utils", "helpers", "common", "misc")]
