"""What the packets of a file say before anything is decoded: whether decord may read it, and where clocks jump."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from av.error import FFmpegError

IDR, SLICE_TYPES = 5, range(1, 6)
JUMP_S = 10.0
"""A clock that leaps ahead by more than this was set anew (ffmpeg's own threshold); less is a hole in the recording."""
BACK_S = 0.5
"""A clock that falls back by more than this was set anew; less is jitter."""


@dataclass(frozen=True)
class Splice:
    """From packet number `packet` of stream `stream` on, in the order of the file, times are `offset_s` later than written."""

    stream: int
    packet: int
    offset_s: float


@dataclass
class _Clock:
    """The clock of one stream while its packets pass by."""

    packets: int = 0
    segment: int = 0
    latest_s: float | None = None  # as written
    end_s: float = 0.0  # on the joined timeline


@dataclass
class PacketScan:
    """What a walk over all packets of the wanted streams found."""

    splices: tuple[Splice, ...] = ()
    end_s: dict[int, float] = field(default_factory=dict)  # stream number -> end of its last packet on the joined timeline


def scan_clocks(container: Any, streams: list[Any]) -> PacketScan:
    """Walk over all packets, from the current position, and note where the clocks of `streams` jump or start anew.

    The parts of a recording (MPEG-TS or FLV files put together, a camera that was reset) are laid end to end. All streams of a
    part are moved by the same time, that of the stream which comes first, so that sound and picture stay together.
    """
    clocks = {stream.index: _Clock() for stream in streams}
    offsets = [0.0]
    splices = []
    for packet in _packets(container, streams):
        clock = clocks[packet.stream_index]
        time = packet.dts if packet.dts is not None else packet.pts
        if time is not None and packet.size:
            time_s = float(time * packet.time_base)
            length_s = float((packet.duration or 0) * packet.time_base)
            if clock.latest_s is not None and not -BACK_S <= time_s - clock.latest_s <= JUMP_S:
                clock.segment += 1
                if clock.segment == len(offsets):
                    latest_end_s = max(other.end_s for other in clocks.values())
                    offsets.append(latest_end_s - time_s)
                splices.append(Splice(packet.stream_index, clock.packets, offsets[clock.segment]))
            clock.latest_s = time_s
            shown_s = float((packet.pts if packet.pts is not None else time) * packet.time_base)
            clock.end_s = max(clock.end_s, shown_s + offsets[clock.segment] + length_s)
        clock.packets += 1
    return PacketScan(tuple(splices), {index: clock.end_s for index, clock in clocks.items()})


@dataclass(frozen=True)
class PictureTable:
    """All packets of a picture stream: when each is shown, and which of them start afresh."""

    times_s: tuple[float, ...]  # ascending presentation times in the file, s
    keys: tuple[int, ...]  # ranks in time of the key packets


def closed_table(container: Any, stream: Any) -> PictureTable | None:
    """The packets of an H.264 stream in MP4 if each is one picture and each key packet a true entry, else None.

    decord numbers packets by time, seeks to a key packet by its number and counts the pictures that come out. It is right only
    where packets and pictures are one to one (all times there and unique, none hidden by an edit list) and nothing shown
    before a key packet comes after it in the file: each key packet an IDR picture whose place in the file is its rank in time.
    Packets whose units do not fill them exactly are damaged, and PyAV's to judge.
    """
    extradata = bytes(stream.codec_context.extradata or b"")
    if len(extradata) < 7 or extradata[0] != 1:  # no avcC record: units have no lengths
        return None
    prefix = (extradata[4] & 3) + 1
    times: list[int] = []
    keys: list[int] = []
    for packet in _packets(container, [stream]):
        if not packet.size:
            continue
        if packet.pts is None or packet.is_discard or packet.is_corrupt:
            return None
        kinds = _unit_kinds(bytes(packet), prefix)
        if kinds is None:
            return None
        if packet.is_keyframe != (IDR in kinds):
            return None
        if packet.is_keyframe:
            keys.append(len(times))
        times.append(packet.pts)
    ranks = {time: rank for rank, time in enumerate(sorted(times))}
    if not keys or keys[0] != 0 or len(ranks) != len(times) or any(ranks[times[key]] != key for key in keys):
        return None
    return PictureTable(tuple(float(time * stream.time_base) for time in sorted(times)), tuple(keys))


def _unit_kinds(data: bytes, prefix: int) -> set[int] | None:
    """Kinds of the picture units of one H.264 packet; None where lengths and data disagree, or there is no picture."""
    kinds, position = set(), 0
    while position < len(data):
        length = int.from_bytes(data[position : position + prefix], "big")
        position += prefix
        if not 0 < length <= len(data) - position:
            return None
        kinds.add(data[position] & 31)
        position += length
    return kinds if any(kind in SLICE_TYPES for kind in kinds) else None


def _packets(container: Any, streams: list[Any]) -> Iterator[Any]:
    """The packets of `streams` as far as the file can be read."""
    packets = container.demux(streams)
    while True:
        try:
            yield next(packets)
        except (StopIteration, FFmpegError, OSError):
            return
