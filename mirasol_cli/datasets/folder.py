"""One walk over an untrusted folder that never leaves it, and annotation files found in it by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mirasol_cli.errors import DataError
from mirasol_cli.files import is_encodable

ANNOTATION_SUFFIXES = frozenset({".json", ".jsonl", ".csv", ".tsv", ".txt", ".tar"})


class FolderWalk:
    """Relative POSIX paths of all regular files below `root`, folder by folder, sorted within a folder.

    Links are followed to files inside the root only; links to folders are not followed (inside the root, their files are
    found anyway). What was passed over is kept, so that a summary can name it: `outside` (links that lead out of the root)
    and `unreadable` (folders without permission). Hidden folders and names that are not UTF-8 are skipped.
    """

    def __init__(self, root: Path):
        self.root = root
        self.outside: list[str] = []
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[str]:
        base = os.path.realpath(self.root)
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            folders = []
            for entry in self._entries(prefix):
                name = prefix + entry.name
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if os.path.commonpath((base, target)) != base:
                        self.outside.append(name)
                    elif os.path.isfile(target):
                        yield name
                elif entry.is_dir():
                    if not entry.name.startswith("."):
                        folders.append(name + "/")
                elif entry.is_file():
                    yield name
            waiting.extend(reversed(folders))

    def _entries(self, prefix: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / prefix) as found:
                return sorted((entry for entry in found if is_encodable(entry.name)), key=lambda entry: entry.name)
        except PermissionError:
            self.unreadable.append(prefix or ".")
            return []


class AnnotationFiles:
    """The files below `root` that may be annotations, found by file name wherever they lie.

    `everything` holds the relative paths of all files, `paths` of those that may be annotations. Where several share a name,
    one whose folder mentions the data set (`prefer`) wins, then the one nearest to the root; `notes` says which was taken.

    Raises:
        DataError: `root` is not a folder.
    """

    def __init__(self, root: Path, prefer: str = ""):
        if not root.is_dir():
            raise DataError(f"the folder '{root}' does not exist", "pass the folder with annotations and videos as --root")
        self.root = root
        self.notes: list[str] = []
        self.everything = list(FolderWalk(root))
        self.paths = [name for name in self.everything if os.path.splitext(name)[1].lower() in ANNOTATION_SUFFIXES]
        self.paths.sort(key=lambda name: (prefer not in os.path.dirname(name).lower(), name.count("/"), name))

    def matching(self, pattern: str) -> list[Path]:
        """All files whose name (without folders, any case) matches the whole regular expression, best first."""
        wanted = re.compile(pattern, re.IGNORECASE)
        return [self.root / name for name in self.paths if wanted.fullmatch(name.rpartition("/")[2])]

    def first(self, *patterns: str) -> Path | None:
        """The best file of the first pattern that any file name matches."""
        for pattern in patterns:
            found = self.matching(pattern)
            if found:
                if len(found) > 1:
                    self.notes.append(f"{len(found)} files are named like '{found[0].name}'; read '{found[0].relative_to(self.root)}'")
                return found[0]
        return None

    def missing(self, title: str, expected: str, source: str) -> DataError:
        """The error for absent annotations: what is expected where, and where it is published."""
        return DataError(
            f"no annotations of {title} below '{self.root}': expected {expected}, in any subfolder",
            f"they are published at {source}",
        )
