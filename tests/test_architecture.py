"""What holds for the whole source: imports point one way, nothing dangerous is called, nothing heavy is imported early."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mirasol_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

LOOSE = ("errors", "files", "fields", "geometry", "sample")
ROOMS = (
    *("text", "media", "demo"), *("datasets", "shards", "model"), "config", "runtime", "batches", "checkpoints", "inference", "evaluation",
    *("training", "prepare", "cli"),
)  # fmt: skip
ORDER = (*LOOSE, *ROOMS)
"""Loose modules, then rooms. Each imports from those before it; inside a room there are no circles."""
DOORS = ("__init__", "__main__")
"""`mirasol_cli` itself, which opens the rooms of the library and of the command line."""


def room_of(name: str) -> str:
    """The place in ORDER of a file below mirasol_cli, or of a module's name without `mirasol_cli.`."""
    return name.removesuffix(".py").replace("/", ".").split(".")[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, at_module_level: bool = False, for_types: bool = True) -> Iterator[str]:
    """Names of the imported modules; `from mirasol_cli.model import layers` counts as mirasol_cli.model.layers."""
    nodes = _run_at_import(tree(path)) if at_module_level else _nodes(tree(path), for_types)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if _file_of(name) is not None]
            yield from modules
            if len(modules) < len(inner):
                yield node.module


def _nodes(node: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if for_types or not _is_for_types(child):
            yield child
            yield from _nodes(child, for_types)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _file_of(module: str) -> Path | None:
    """The file of a module of ours, or None."""
    if module.split(".")[0] != "mirasol_cli":
        return None
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if _is_for_types(child):
            continue
        yield child
        yield from _run_at_import(child)


def test_the_rooms_are_these() -> None:
    assert len(MODULES) > 60
    assert {room_of(name) for name in NAMES} == {*LOOSE, *ROOMS, *DOORS}
    assert {path.stem for path in PACKAGE.glob("*.py")} <= {*LOOSE, *DOORS}


def wrong_arrows(name: str, imported: list[str]) -> list[str]:
    """The modules in `imported` that the file `name` must not import, since their room comes after its own."""
    room = room_of(name)
    if room in DOORS:
        return []
    others = [module.removeprefix("mirasol_cli.") for module in imported if module.startswith("mirasol_cli.")]
    return [module for module in others if room_of(module) != room and ORDER.index(room_of(module)) > ORDER.index(room)]


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name: str) -> None:
    imported = list(imports(PACKAGE / name))
    assert wrong_arrows(name, imported) == [], f"{name} imports from a room to its right"
    if room_of(name) in ("config", "cli"):
        early = [module for module in imports(PACKAGE / name, at_module_level=True) if module.startswith("mirasol_cli.model.")]
        assert set(early) <= {"mirasol_cli.model.config", "mirasol_cli.model.objectives"}, f"{name} loads without torch"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Paths that lead back to their first module, one for each module that was found twice on its own way."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*way, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {}
    for path in MODULES:
        name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        graph[name] = {module for module in imports(path, for_types=False) if module != name and _file_of(module) is not None}
    assert circles(graph) == []


def test_a_circle_and_a_wrong_arrow_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert wrong_arrows("model/layers.py", ["mirasol_cli.config.schema", "mirasol_cli.geometry", "torch"]) == ["config.schema"]
    assert wrong_arrows("geometry.py", ["mirasol_cli.fields", "mirasol_cli.sample"]) == ["sample"]


@pytest.mark.parametrize("name", NAMES)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    room = room_of(name)
    found = {module.split(".")[0] for module in imports(PACKAGE / name)}
    early = {module.split(".")[0] for module in imports(PACKAGE / name, at_module_level=True)}
    assert "pickle" not in found
    assert not {"marshal", "shelve", "dill", "cloudpickle"} & found
    assert "torchaudio" not in early  # its import may fail in ways that are no ImportError
    assert not {"requests", "urllib3", "httpx"} & found  # nothing is downloaded
    if room in ("model", "training"):
        assert not {"decord", "av", "typer"} & found
    if room == "model":
        assert not {"yaml", "sentencepiece", "pathlib"} & found
    if "decord" in found:
        assert room == "media" or name == "cli/doctor.py"
    if room in ("cli", "config", *LOOSE) or name == "datasets/registry.py":
        assert not {"torch", "numpy", "av", "rich", "tqdm"} & early


def test_the_command_line_and_the_recipes_load_without_torch() -> None:
    code = (
        "import sys, mirasol_cli.cli.app, mirasol_cli.config.reader; print(sorted({'torch', 'numpy', 'av', 'decord'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


def test_model_and_training_load_without_decoders_and_typer() -> None:
    names = [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in MODULES if path.parent.name in ("model", "training")]
    code = f"import sys, importlib; [importlib.import_module(n) for n in {[n for n in names if not n.endswith('__init__')]}]; "
    code += "print(sorted({'decord', 'av', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _narrows_a_type(test: ast.expr) -> bool:
    """`x is not None` and `isinstance(x, C)`, or its negation: told to the type checker, not to the user."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test = test.operand
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], (ast.Is, ast.IsNot))
    return isinstance(test, ast.Call) and _dotted(test.func) == "isinstance"


FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.safe_load",
    "os.system",
    "os.popen",
}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_dangerous_is_called_and_nothing_is_asserted(name: str) -> None:
    for node in ast.walk(tree(PACKAGE / name)):
        if isinstance(node, ast.Call):
            assert _dotted(node.func) not in FORBIDDEN_CALLS, f"{name}:{node.lineno} calls {_dotted(node.func)}"
            for keyword in node.keywords:
                unsafe = keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                assert not unsafe, f"{name}:{node.lineno} uses a shell"
        if isinstance(node, ast.Assert):
            assert _narrows_a_type(node.test), f"{name}:{node.lineno} asserts: raise a class of errors.py"


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_short_and_say_what_they_are_for(name: str) -> None:
    text = (PACKAGE / name).read_text(encoding="utf-8")
    assert text.count("\n") <= 500, f"{name} has {text.count(chr(10))} lines"
    if text.strip():
        assert ast.get_docstring(tree(PACKAGE / name)), f"{name} has no docstring"
