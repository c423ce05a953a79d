"""Maps the video names of a data set to files on disk.

One walk indexes all videos of a folder by stem (file name without its video suffix; ids are case-sensitive, suffixes are
not). A name to look up is one of

    abc_000030                       a stem, in any folder
    1164/2574374895                  a stem below these last folders
    academic_source/RW587.mp4        either, with the suffix it must have
    00000.tar/000000012.mp4          a member of an uncompressed tar shard

What the file holds goes with the name: a clip cut out already, or the source it has to be cut from (`Candidate.whole`).
The index only knows what the walk met below the root, so that no name, however hostile, can lead out of it.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mirasol_cli.datasets.example import Candidate, ClipSpan
from mirasol_cli.datasets.folder import FolderWalk
from mirasol_cli.errors import DataError
from mirasol_cli.files import inside

VIDEO_SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".ts", ".wmv", ".3gp", ".ogv",
    ".m2ts", ".mts", ".vob", ".mxf", ".asf", ".f4v", ".3g2", ".divx", ".rmvb", ".ogm", ".dv", ".nut", ".y4m",
)  # fmt: skip
"""In order of preference, where one folder holds the same stem twice."""
AUDIO_SUFFIXES = (".wav", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".aac", ".oga", ".wma", ".aiff", ".aif", ".mka", ".ac3", ".weba")
"""Of sound alone; used where there is no video of the same name, and only if asked for."""


@dataclass(frozen=True)
class Found:
    """A file for a clip. `path` is the file, or the tar shard that holds it as `member` (see `unpack`)."""

    path: Path
    whole: bool | None = True  # of the candidate that was found
    copies: tuple[str, ...] = ()  # all relative paths that the name fits, if there are several; the first was taken
    member: str | None = None
    offset: int = 0  # of the member's bytes in the tar
    size: int = 0


class VideoIndex:
    """All videos below `root`.

    Names are compared in Unicode's form NFC: a Mac may have written `é` as two characters.

    Args:
        root: the folder.
        names: paths of the videos, relative to `root`; default: what a walk through the folder finds.
        audio: files of sound alone count as well.

    Attributes:
        duplicates: name looked up -> all relative paths it fits, the one taken first.
        outside, unreadable: links and folders that the walk passed over, relative to the root.
        audio_files: files of sound alone, whether they count or not.

    Raises:
        DataError: `root` is to be walked through, and is not a folder.
    """

    def __init__(self, root: Path, names: Iterable[str] | None = None, *, audio: bool = False):
        self.root = root
        self.suffixes = VIDEO_SUFFIXES + AUDIO_SUFFIXES if audio else VIDEO_SUFFIXES
        self.audio_files = 0
        self.outside: list[str] = []
        self.unreadable: list[str] = []
        self.duplicates: dict[str, tuple[str, ...]] = {}
        self.files = 0
        self._by_stem: dict[str, list[str]] = {}
        self._without_suffix: dict[str, str] = {}
        self._tars: dict[str, dict[str, tuple[int, int]]] = {}
        if names is None:
            if not root.is_dir():
                raise DataError(f"the folder '{root}' does not exist", "give the folder that holds the videos with --root")
            names = walk = FolderWalk(root)
            self.outside, self.unreadable = walk.outside, walk.unreadable  # both are filled while it is walked through
        for name in names:
            last = name.rpartition("/")[2]
            stem, suffix = split_suffix(last, self.suffixes)
            self.audio_files += is_audio(last)
            if suffix:
                self._by_stem.setdefault(_nfc(stem), []).append(name)
                self.files += 1
            elif "." not in last:
                self._without_suffix.setdefault(_nfc(name), name)

    def __len__(self) -> int:
        return self.files

    def find(self, names: Sequence[str | Candidate]) -> Path | None:
        """The file of the first name that fits one, or None."""
        found = self.locate([name if isinstance(name, Candidate) else Candidate(name) for name in names])
        return found.path if found else None

    def locate(self, candidates: Sequence[Candidate]) -> Found | None:
        """The file of the first candidate that fits one, with what it holds; None if no candidate does."""
        for candidate in candidates:
            if is_hostile(candidate.name):
                continue
            fits = self._fitting(candidate.name)
            if fits:
                if len(fits) > 1:
                    self.duplicates[candidate.name] = fits
                return Found(self.root / fits[0], candidate.whole, fits if len(fits) > 1 else ())
            if ".tar/" in candidate.name:
                member = self._member(candidate)
                if member:
                    return member
            elif path := self._plain_file(candidate.name):
                return Found(path, candidate.whole)
        return None

    def _fitting(self, name: str) -> tuple[str, ...]:
        """The relative paths that a name fits (one alone if it is named in full), best first: nearest to the root, then by suffix."""
        name = str(PurePosixPath(name))
        folders, _, last = name.rpartition("/")
        stem, suffix = split_suffix(last, self.suffixes)
        paths = self._by_stem.get(_nfc(stem), ())
        if name in paths:
            return (name,)
        folders, fits = _nfc(folders), []
        for path in paths:
            its_folders, _, its_last = _nfc(path).rpartition("/")
            its_suffix = split_suffix(its_last, self.suffixes)[1]
            if suffix and suffix.lower() not in (its_suffix.lower(), os.path.splitext(its_last)[1].lower()):
                continue
            if folders and its_folders != folders and not its_folders.endswith("/" + folders):
                continue
            preference = self.suffixes.index(os.path.splitext(its_last)[1].lower())
            fits.append((its_suffix != suffix, path.count("/"), preference, path))
        with_video = [fit for fit in fits if fit[2] < len(VIDEO_SUFFIXES)]
        return tuple(path for *_, path in sorted(with_video or fits))

    def _plain_file(self, name: str) -> Path | None:
        """A file named in full that has no known video suffix, or none at all (a manifest may name any file)."""
        if "." not in name.rpartition("/")[2]:
            known = self._without_suffix.get(_nfc(str(PurePosixPath(name))))
            return None if known is None else self.root / known
        try:
            path = inside(self.root, name)
            return path if path is not None and path.is_file() else None
        except PermissionError:  # of a folder on the way; the decoder says so, of this clip alone
            return self.root / name
        except OSError:  # longer than any name, a circle of links
            return None

    def _member(self, candidate: Candidate) -> Found | None:
        archive, _, member = candidate.name.partition(".tar/")
        archive += ".tar"
        if archive not in self._tars:
            path = inside(self.root, archive)
            self._tars[archive] = tar_members(path)[0] if path is not None and path.is_file() else {}
        place = self._tars[archive].get(member)
        if place is None:
            return None
        return Found(self.root / archive, candidate.whole, member=member, offset=place[0], size=place[1])


def _nfc(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def split_suffix(name: str, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> tuple[str, str]:
    """(stem, video suffix as written); the suffix is empty where it is no video's: `abc_30.000` is all stem.

    Downloaders that were told `abc.mp4` and got another container write `abc.mp4.webm`: stem `abc`, suffix `.mp4.webm`.
    """
    stem = name
    while (parts := os.path.splitext(stem))[1].lower() in suffixes:
        stem = parts[0]
    return stem, name[len(stem) :]


def is_audio(name: str) -> bool:
    """Whether a file's name is that of sound alone."""
    return os.path.splitext(name.strip())[1].lower() in AUDIO_SUFFIXES


def is_hostile(name: str) -> bool:
    """Whether a name tries to be more than a path below a folder: empty, absolute, with `..`, a drive, or a NUL."""
    if not name or "\0" in name or name.startswith(("/", "\\", "~")) or name[1:3] in (":\\", ":/"):
        return True
    return ".." in name.replace("\\", "/").split("/")


def tar_members(path: Path) -> tuple[dict[str, tuple[int, int]], str | None]:
    """Member name -> (offset, size) of the regular files of an uncompressed tar, read from its headers alone.

    The second value says what is wrong with the tar, if anything; the members before the damage are complete.
    """
    members: dict[str, tuple[int, int]] = {}
    try:
        end = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if entry.offset_data + entry.size > end:
                    return members, f"it is cut off inside '{entry.name}'"
                if entry.isreg() and not entry.issparse() and not is_hostile(entry.name):
                    members[str(PurePosixPath(entry.name))] = (entry.offset_data, entry.size)
    except (tarfile.TarError, OSError) as error:
        return members, str(error)
    return members, None


def read_member(path: Path, place: tuple[int, int]) -> bytes:
    """The bytes of one member of `tar_members`."""
    with open(path, "rb") as file:
        file.seek(place[0])
        return file.read(place[1])


def unpack(found: Found, folder: Path) -> Path:
    """The clip's file itself: `found.path`, or for a tar member a copy of it in `folder`, which the caller deletes after use."""
    if found.member is None:
        return found.path
    # offset and name make the copy's name unique: members of different folders may share their last name
    target = folder / f"{found.path.stem}-{found.offset}-{PurePosixPath(found.member).name}"
    with open(found.path, "rb") as source, open(target, "wb") as copy:
        source.seek(found.offset)
        left = found.size
        while left:
            piece = source.read(min(left, 1 << 20))
            if not piece:
                raise DataError(f"'{found.path}' ends inside its member '{found.member}'")
            copy.write(piece)
            left -= len(piece)
        shutil.copystat(found.path, target)
    return target


def span_to_read(clip: ClipSpan, whole: bool | None, file_seconds: float | None) -> tuple[float, float | None] | None:
    """(start, end) to read from a clip's file, or None for all of it.

    A file under a bare id is the source video for some and the clip for others. OURS: it is the clip if it lasts no longer than
    the span (and one second, for cuts at keyframes), or if it ends before the span starts and lasts at most twice as long.

    Args:
        whole: what the resolver said the file holds.
        file_seconds: the file's length, needed only if `whole` is None; unknown: the file is taken for the source.
    """
    if whole or clip.start_s is None:
        return None
    if whole is None and file_seconds is not None and clip.end_s is not None:
        length = clip.end_s - clip.start_s
        if file_seconds <= length + 1 or (file_seconds <= clip.start_s and file_seconds <= 2 * length):
            return None
    return clip.start_s, clip.end_s
