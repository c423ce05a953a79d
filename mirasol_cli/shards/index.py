"""Shards, schema version 2: what lies in which file. The fields of a clip are in `mirasol_cli.sample`.

    <out>/<split>/clips.jsonl               the expected clips, one a line; the line number is the clip's number; only ever appended to
                  clips.columns             arrays with an entry per clip: status, audio, seconds, checksums (see `columns`)
                  shard-00000.safetensors   media: one tensor per field, the kept clips of the shard stacked along dim 0
                  <task>.jsonl              texts that point to clips by number
                  <task>.columns            arrays with an entry per text: clip, lengths, where its line lies, checksum
                  failures.jsonl            clips that could not be used: video, stage, reason, hint
                  incomplete.jsonl          clips that were kept and lack frames: video, share of the frames that is missing
                  problems.json             what deserves a look: clips missing, failed, silent, without sound, short; names that several
                                            files fit; links and folders that were not looked into
                  index.json                geometry, reader, licence, counts, sizes and checksums of all of the above; written last

Shard k holds the expected clips [k n, (k + 1) n) minus failures and missing files, where n is a function of the geometry alone.
With V views a clip fills V consecutive rows: row = position * V + view. A shard's metadata repeat the keys and checksums of
its rows, so that its content can be taken over even where the index is lost. Nothing in any file depends on time, paths or order of work.

Columns are files in the safetensors format, and mapped: what a process holds of a split does not grow with it, and ten million clips
open in seconds. An index that holds all of this itself, as indexes did before there were columns, is read too; `prepare` replaces it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.errors import ShardError
from mirasol_cli.files import crc32_of, json_line, write_atomic
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import READER_VERSION
from mirasol_cli.sample import bytes_per_clip

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 2
INDEX, CLIPS, FAILURES, INCOMPLETE, PROBLEMS = "index.json", "clips.jsonl", "failures.jsonl", "incomplete.jsonl", "problems.json"
CLIP_COLUMNS = "clips.columns"
SHARD_BYTES = 256_000_000
"""About what a shard holds."""
LARGEST_SHARD = 1024
"""Most clips of a shard."""
METADATA_KEY = "mirasol"
"""The one metadata key, holding JSON: several keys would be written in no fixed order."""


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def record_name(number: int) -> str:
    """A finished shard's entry of the index, kept beside it until the index is written."""
    return f"shard-{number:05d}.json"


def texts_name(task: str) -> str:
    return f"{task}.jsonl"


def text_columns_name(task: str) -> str:
    return f"{task}.columns"


def clips_per_shard(geometry: ClipGeometry) -> int:
    """n: about SHARD_BYTES a shard, at least 1 and at most LARGEST_SHARD clips; depends on the geometry only."""
    return max(1, min(LARGEST_SHARD, SHARD_BYTES // (bytes_per_clip(geometry) * geometry.views)))


def views_of(split: str, geometry: ClipGeometry) -> int:
    """Only training clips have further views."""
    return geometry.views if split == "train" else 1


def row_checksum(row: Mapping[str, np.ndarray], names: Sequence[str]) -> int:
    """CRC-32 over the bytes of the fields, in the given order."""
    return crc32_of(row[name].reshape(-1).view("uint8").data for name in names)


@dataclass(frozen=True, kw_only=True)
class ClipFailure:
    """Why one clip is not in the shards; one line of failures.jsonl."""

    clip: int
    key: str
    video: str
    stage: str
    reason: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """All that is known of one shard. Clip numbers ascend; `crc32` has one entry per row, `audio` and `seconds` one per kept clip."""

    number: int
    clips: int  # expected clips of this shard
    clips_digest: str  # of their keys, so that a shard of other clips is noticed
    kept: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    failed: list[ClipFailure] = field(default_factory=list)
    short: list[int] = field(default_factory=list)  # kept, but shorter than the span asked for
    incomplete: list[list] = field(default_factory=list)  # kept, but with frames missing: [clip, missing share of its frames]
    audio: list[int] = field(default_factory=list)  # AudioState
    seconds: list[float] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)
    bytes: int = 0  # 0: nothing was kept and there is no file
    sha256: str = ""

    @property
    def name(self) -> str:
        return shard_name(self.number)

    @property
    def entry(self) -> ShardEntry:
        return ShardEntry(number=self.number, clips=self.clips, clips_digest=self.clips_digest, bytes=self.bytes, sha256=self.sha256)

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> ShardRecord:
        values = dict(plain)
        return ShardRecord(**{**values, "failed": [ClipFailure(**failure) for failure in values["failed"]]})


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """What the index says about one shard; what there is per clip lies in columns."""

    number: int
    clips: int
    clips_digest: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return shard_name(self.number)


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """What the index says about one task's texts."""

    dataset: str
    licence: str
    texts: int
    sha256: str
    labels: list[str] = field(default_factory=list)  # the closed answer set, in the official order, where there is one
    notes: list[str] = field(default_factory=list)  # what the reader repaired or dropped
    manifest: str = ""  # the manifest's file name; empty for a data set
    place: str = ""  # digest of where that manifest lies, seen from the shards; empty if --out named the folder
    columns: str = ""  # sha256 of <task>.columns; empty: there are none


@dataclass(frozen=True, kw_only=True)
class SplitIndex:
    """index.json."""

    split: str
    geometry: ClipGeometry
    views: int
    clips_per_shard: int
    versions: dict[str, str]
    counts: dict[str, Any]
    tasks: dict[str, TaskEntry]
    files: dict[str, str]  # name -> sha256 of clips.jsonl, clips.columns, failures.jsonl, incomplete.jsonl, problems.json
    shards: list[ShardEntry]
    reader: int = READER_VERSION  # of the decoders that read the videos
    schema: int = SCHEMA
    inline: list[ShardRecord] = field(default_factory=list)  # where there are no columns: the shards as the index itself tells them

    @property
    def clips(self) -> int:
        """Expected clips."""
        return sum(entry.clips for entry in self.shards)

    def write(self, path: Path) -> None:
        plain = {
            "schema": self.schema, "reader": self.reader, "split": self.split, "geometry": self.geometry.to_plain(), "views": self.views,
            "clips_per_shard": self.clips_per_shard, "versions": self.versions, "counts": self.counts,
            "tasks": {task: asdict(entry) for task, entry in self.tasks.items()}, "files": self.files,
            "shards": [asdict(entry) for entry in self.shards],
        }  # fmt: skip
        write_checksummed(path, plain)

    @staticmethod
    def read(path: Path) -> SplitIndex:
        """Raises ShardError if the index is missing, damaged, or of another schema or reader."""
        plain = read_checksummed(path)
        check_reader(plain, path)
        try:
            plain["geometry"] = ClipGeometry.from_plain(plain["geometry"])
            plain["tasks"] = {task: TaskEntry(**entry) for task, entry in plain["tasks"].items()}
            if CLIP_COLUMNS in plain["files"]:
                plain["shards"], plain["inline"] = [ShardEntry(**entry) for entry in plain["shards"]], []
            else:
                plain["inline"] = [ShardRecord.from_plain(record) for record in plain["shards"]]
                plain["shards"] = [record.entry for record in plain["inline"]]
            return SplitIndex(**plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShardError(f"'{path}' is not an index of shards: {error}", REPAIR_HINT) from None


def check_reader(plain: Mapping[str, Any], path: Path) -> None:
    """Raises ShardError if what lies at `path` was written in another schema, or by a reader that may have given other frames."""
    schema, reader = plain.get("schema"), plain.get("reader")
    if schema == SCHEMA and reader == READER_VERSION:
        return
    tasks = plain.get("tasks")
    entry = next(iter(tasks.values()), None) if isinstance(tasks, dict) else None
    entry = entry if isinstance(entry, dict) else {}
    dataset = entry.get("manifest") or str(entry.get("dataset", "DATASET")).replace("manifest", "MANIFEST")
    if schema != SCHEMA:
        why = f"has schema {schema}; this version reads schema {SCHEMA}"
    else:
        why = f"was made by version {reader} of the video reader; this is version {READER_VERSION}, which may give other frames"
    command = f"mirasol prepare {dataset} --out {path.parent.parent} --verify --retry-failed"
    hint = f"rebuild the shards, with the other options as before: `{command}`; or delete '{path.parent}'"
    if any(isinstance(theirs, int) and theirs > mine for theirs, mine in ((schema, SCHEMA), (reader, READER_VERSION))):
        hint = "it was written by a newer mirasol: update mirasol"
    raise ShardError(f"'{path}' {why}", hint)


REPAIR_HINT = "`mirasol prepare ... --verify` lists what is damaged; adding `--retry-failed` prepares it again"


def write_checksummed(path: Path, value: dict[str, Any]) -> None:
    """Atomic JSON, one line per key and per item of a list, with a checksum of the rest as its last key."""
    lines = []
    for key, item in value.items():
        if isinstance(item, list):
            items = ",\n    ".join(json_line(entry) for entry in item)
            lines.append(f"  {json.dumps(key)}: [\n    {items}\n  ]" if items else f"  {json.dumps(key)}: []")
        else:
            lines.append(f"  {json.dumps(key)}: {json_line(item)}")
    lines.append(f'  "checksum": "{_seal(value)}"')
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_checksummed(path: Path) -> dict[str, Any]:
    """What `write_checksummed` wrote. Raises ShardError that names the file if it is missing or any of it was changed."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(f"'{path}' is missing", "run the `mirasol prepare` command that creates it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"'{path}' is damaged: {error}", REPAIR_HINT) from None
    if not isinstance(value, dict) or "checksum" not in value:
        raise ShardError(f"'{path}' was not written by mirasol, or is damaged: it has no checksum", REPAIR_HINT)
    if value.pop("checksum") != _seal(value):
        raise ShardError(f"'{path}' is damaged: its checksum does not match its content", REPAIR_HINT)
    return value


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def keys_digest(keys: Sequence[str]) -> str:
    """Short digest of clip keys in their order."""
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_geometry(mine: ClipGeometry, theirs: ClipGeometry, path: Path) -> None:
    """Raises ShardError that names every differing key with both values."""
    if differences := mine.differences(theirs):
        raise ShardError(
            f"'{path}' was prepared with a different clip geometry: {'; '.join(differences)}",
            "use other shards, or set clip.* to the geometry of the shards",
        )
