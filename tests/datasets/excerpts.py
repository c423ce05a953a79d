"""Real excerpts of annotation files laid out under the names they are published with."""

import shutil
from pathlib import Path

from tests.paths import SHARED


def place(root: Path, files: dict[str, str]) -> Path:
    """Copy `annotations/<source>` to `root/<target>` for each source -> target; returns `root`."""
    assert SHARED is not None
    for source, target in files.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHARED / "annotations" / source, root / target)
    return root


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """Write each name -> content below `root`; returns `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root
