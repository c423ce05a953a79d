"""The wheel, really built: the recipes lie inside the package, the command works from it, and nothing else comes along."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked as an installer would."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = folder.glob("mirasol-*.whl")
    unpacked = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def mirasol(site: Path, *arguments: str) -> str:
    """Output of the command, run from the unpacked wheel and away from the source tree."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = 'mirasol'; from mirasol_cli.cli.app import main; main()"
    command = [sys.executable, "-P", "-c", code, str(site), *arguments]
    return subprocess.run(command, cwd=site.parent, check=True, capture_output=True, text=True, timeout=60).stdout


def test_recipes_are_inside_the_package_and_nowhere_else(site: Path) -> None:
    def recipes(folder: Path) -> dict[str, str]:
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.yaml")}

    shipped, packed = recipes(ROOT / "recipes"), recipes(site / "mirasol_cli" / "recipes")
    assert len(packed) >= 20
    assert "vggsound" in mirasol(site, "recipes", "validate", "vggsound")
    assert packed == shipped
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"mirasol_cli"}


def test_every_module_and_asset_is_packed(site: Path) -> None:
    def files(root: Path) -> set[str]:
        kept = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(root)) for path in kept if not path.name.startswith(".")}

    packed = files(site / "mirasol_cli") - {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    assert len(packed) > 60
    assert packed == files(ROOT / "mirasol_cli") - {"assets/ask-why.png"}  # the README's picture


def test_metadata_names_command_licence_and_dependencies(site: Path) -> None:
    (info,) = site.glob("mirasol-*.dist-info")
    assert "mirasol = mirasol_cli.cli.app:main" in (info / "entry_points.txt").read_text()
    metadata = (info / "METADATA").read_text()
    assert "License-Expression: Apache-2.0" in metadata
    assert (info / "licenses" / "LICENSE").is_file()
    requirements = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    for wanted in ("torch<2.14,>=2.11", "torchaudio<2.12,>=2.11", "safetensors>=0.8", "typer>=0.26"):
        assert wanted in requirements
    markers = {line.partition(";")[0].strip(): line.partition(";")[2] for line in requirements if line.startswith("decord")}
    assert set(markers) == {"decord>=0.6.0", "decord2>=2.0"}
    assert all("sys_platform" in marker for marker in markers.values())  # exactly one of the two is ever installed


def test_the_command_works_from_the_wheel(site: Path) -> None:
    assert mirasol(site, "--version").startswith("mirasol ")
    listed = mirasol(site, "recipes", "ls")
    assert len(listed.splitlines()) == len(list((ROOT / "recipes").glob("*.yaml")))
    assert mirasol(site, "recipes", "show", "demo").startswith("# The demo world")
    assert "is valid" in mirasol(site, "recipes", "validate", "msrvtt", "model.preset=small")


def test_every_imported_library_is_declared() -> None:
    import ast
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    names = {one.split(";")[0].split(">")[0].split("<")[0].split("[")[0].strip().lower() for one in declared}
    packages = {"yaml": "pyyaml", "PIL": "pillow", "markupsafe": "jinja2"}  # MarkupSafe is a part of Jinja
    for path in (ROOT / "mirasol_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for module in {one.split(".")[0] for one in modules} - set(sys.stdlib_module_names) - {"mirasol_cli"}:
                assert packages.get(module, module).lower() in names, f"{path.name} imports {module}, which pyproject.toml does not declare"
