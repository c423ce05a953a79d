import subprocess
import sys
from pathlib import Path

import pytest

from mirasol_cli.datasets.example import DatasetOptions
from mirasol_cli.datasets.registry import DATASETS, RENDERED, licences, open_dataset
from mirasol_cli.errors import DataError, UsageError

READERS = [name for name in DATASETS if name not in RENDERED]


@pytest.mark.parametrize("name", READERS)
def test_every_reader_keeps_the_interface_and_says_what_is_missing(name: str, tmp_path: Path) -> None:
    reader = open_dataset(name)
    assert name == reader.NAME
    assert "\n" not in reader.LICENCE
    assert reader.TASKS
    with pytest.raises(DataError) as caught:
        reader.read(tmp_path, None, DatasetOptions())
    assert caught.value.message.startswith(f"no annotations of {reader.TITLE} below '{tmp_path}': expected ")
    assert caught.value.hint == f"they are published at {reader.SOURCE}"
    with pytest.raises(DataError, match="does not exist"):
        reader.read(tmp_path / "gone", None, DatasetOptions())


@pytest.mark.parametrize("name", RENDERED)
def test_a_world_that_is_not_rendered_yet_names_the_command(name: str, tmp_path: Path) -> None:
    world = open_dataset(name)
    assert name == world.NAME == world.WORLD.name
    with pytest.raises(DataError, match="is missing") as caught:
        world.read(tmp_path, None, DatasetOptions())
    assert caught.value.hint == f"`mirasol prepare {name}` renders it"


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown data set 'vggsund'; did you mean 'vggsound'"):
        open_dataset("vggsund")


def test_licences_say_what_matters() -> None:
    lines = licences()
    assert set(lines) == set(READERS)
    assert "BY-NC" in lines["epic-sounds"]
    assert "non-commercial" in lines["activitynet"]
    assert "research" in lines["msrvtt"]


def test_reading_annotations_imports_nothing_heavy() -> None:
    code = "import sys; from mirasol_cli.datasets.registry import *; import mirasol_cli.datasets.manifest; licences();"
    code += "print([m for m in ('numpy', 'torch', 'av', 'decord', 'pandas', 'yaml', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
