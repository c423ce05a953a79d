"""What holds for the whole source: imports point one way, nothing dangerous is called, nothing heavy is imported early."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mirasol_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

FOUNDATION = {"errors", "files", "folder_lock", "settings", "geometry"}
RECIPE = {"recipe", "recipe_schema", "recipe_yaml"}
TEXT = {"vocabulary", "prompts", "batches"}
# Layer -> the layers it may import from, besides itself. What is not listed here (cli, prepare, ask ...) may import anything.
MAY_IMPORT = {
    "foundation": set(),
    "recipe": {"foundation", "model"},
    "datasets": {"foundation"},
    "media": {"foundation", "datasets"},
    "shards": {"foundation", "datasets", "media"},
    "model": {"foundation"},
    "text": {"foundation", "media", "model"},
    "training": {"foundation", "recipe", "datasets", "shards", "text", "model"},
    "evaluation": {"foundation", "recipe", "datasets", "media", "shards", "text", "model", "training"},
}


def layer_of(parts: list[str]) -> str:
    """The layer of a module below mirasol_cli, given as its name's parts."""
    first = parts[0] if parts else "commands"
    for layer, members in (("foundation", FOUNDATION), ("recipe", RECIPE), ("text", TEXT)):
        if first in members:
            return layer
    return first if first in MAY_IMPORT else "commands"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, at_module_level: bool = False) -> Iterator[str]:
    """Names of the imported modules; `from mirasol_cli.runtime import console` counts as mirasol_cli.runtime.console."""
    nodes = _run_at_import(tree(path)) if at_module_level else ast.walk(tree(path))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from [f"mirasol_cli.{alias.name}" for alias in node.names] if node.module == "mirasol_cli" else [node.module]


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _run_at_import(child)


def test_the_source_is_found() -> None:
    assert len(MODULES) > 60
    assert set(MAY_IMPORT) == {layer_of([path.stem] if path.parent == PACKAGE else [path.parent.name]) for path in MODULES} - {"commands"}


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name: str) -> None:
    parts = Path(name).with_suffix("").parts
    layer = layer_of([part for part in parts if part != "__init__"])
    if layer == "commands":
        return
    for module in imports(PACKAGE / name):
        if module.startswith("mirasol_cli.") and not module.endswith("__version__"):
            other = layer_of(module.split(".")[1:])
            assert other == layer or other in MAY_IMPORT[layer], f"{name} ({layer}) imports {module} ({other})"
            if layer == "recipe" and other == "model":
                assert module in ("mirasol_cli.model.config", "mirasol_cli.model.objectives"), (
                    f"{name} imports {module}: recipes must load without torch"
                )


@pytest.mark.parametrize("name", NAMES)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    top = Path(name).parts[0]
    found = {module.split(".")[0] for module in imports(PACKAGE / name)}
    early = {module.split(".")[0] for module in imports(PACKAGE / name, at_module_level=True)}
    assert "pickle" not in found
    assert not {"marshal", "shelve", "dill", "cloudpickle"} & found
    assert "torchaudio" not in early  # its import may fail in ways that are no ImportError
    assert not {"requests", "urllib3", "httpx"} & found  # nothing is downloaded
    if top in ("model", "training"):
        assert not {"decord", "av", "typer"} & found
    if top == "model":
        assert not {"yaml", "sentencepiece"} & found
    if "decord" in found:
        assert top in ("media", "doctor.py")
    if name.startswith("cli") or name in (
        "console.py",
        "errors.py",
        "files.py",
        "recipe_schema.py",
        "recipe.py",
        "model/config.py",
        "model/objectives.py",
    ):
        assert not {"torch", "numpy", "av", "rich", "tqdm"} & early
    if name == "datasets/catalogue.py":
        assert not {"torch", "numpy", "av", "pandas"} & early


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


FOREIGN = re.compile(
    r"/work/|/tmp/|/root/|/home/|\bissue #?\d|\bTODO\b|\bFIXME\b|\bXXX\b|\.\./shared|\bclaude\b|\banthropic\b|\bpypi\b|\bthis workplace\b",
    re.I,
)


def test_the_project_speaks_only_of_itself() -> None:
    files = [*MODULES, *(ROOT / "recipes").glob("*.yaml"), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml"))]
    assert len(files) > 75
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert found == []
