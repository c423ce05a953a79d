"""Opening a media file safely with PyAV, and going on past damaged packets."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from mirasol_cli.errors import MediaError
from mirasol_cli.media.packets import Splice

URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters or more: "C:/" is a drive
PLAYLISTS = ("hls", "applehttp", "concat", "dash", "sdp", "rtsp", "imf", "lavfi", "tty")
"""Demuxers that read other files than the one they are given, or draw text: none of them is a video."""
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
AFTER_LOSS = "after a loss"
"""Mark (`frame.opaque`) of a picture before which others were left out."""
DAMAGED_PACKETS = 2000
"""Damaged packets in a row after which a stream is given up."""
LONGEST_DISTRUST = 300
"""Pictures left out after a damaged packet where no key picture comes: streams that refresh bit by bit have healed by then."""


def check_file(path: Path | str) -> None:
    """Raise `MediaError` for what cannot be a media file, before any decoder sees it."""
    if URL.match(str(path)):
        raise MediaError("a URL, not a file", "download the video first", stage="open")
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("file not found", "check the path", stage="open") from None
    except PermissionError:
        raise MediaError("permission denied", "check the file's permissions", stage="open") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise MediaError(f"file cannot be opened: {error}", stage="open") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError("a folder, not a file", "give the path of one video", stage="open")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError("not a regular file", stage="open")
    if status.st_size == 0:
        raise MediaError("empty file", "download it again", stage="open")


def open_media(path: Path | str) -> Any:
    """An open PyAV container; the caller closes it (`with`).

    The path is made absolute, so that FFmpeg never takes a prefix of it for a protocol, and only local files may be read.

    Raises:
        MediaError: with the short reason why this is no readable media file.
    """
    check_file(path)
    full = os.path.abspath(path)
    try:
        container = av.open(full, metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (MemoryError, av.error.MemoryError):
        raise MemoryError from None
    except (FFmpegError, ValueError, OSError) as error:
        if isinstance(error, PermissionError):
            raise MediaError("permission denied", "check the file's permissions", stage="open") from None
        raise unreadable(full) from None
    if any(name in PLAYLISTS for name in container.format.name.split(",")):
        container.close()
        raise MediaError("not a media file", "it is a playlist or a text", stage="open")
    return container


def unreadable(path: Path | str) -> MediaError:
    """Why FFmpeg finds nothing in this file, by a look at its first bytes."""
    with open(path, "rb") as file:
        boxes = _mp4_boxes(file, os.path.getsize(path))
    if not boxes or boxes[0] not in MP4_BOXES:
        hint = "unknown media format; perhaps an error page saved as a video"
        return MediaError("not a media file", hint, stage="open")
    if b"moov" not in boxes:
        return MediaError("moov atom not found (truncated?)", "the file's index is missing; download it again", stage="open")
    return MediaError("damaged file", "download it again", stage="open")


def _mp4_boxes(file: Any, length: int) -> list[bytes]:
    """Kinds of the top-level boxes of an MP4 file, as far as they can be followed."""
    boxes: list[bytes] = []
    position = 0
    while position + 8 <= length and len(boxes) < 1000:
        file.seek(position)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        boxes.append(kind)
        if size < 8:  # 0: to the end of the file; anything else is damage
            break
        position += size
    return boxes


def decoded_frames(container: Any, stream: Any, splices: tuple[Splice, ...] = ()) -> Iterator[Any]:
    """Frames of `stream` in the decoder's output order from the current position on, past damaged packets.

    A plain PyAV decode loop ends at the first bad packet; this one leaves it out. Pictures that the decoder itself marks as corrupt
    are left out, and so are those that follow a packet that could not be decoded, up to the next key picture: they are made of what
    was lost, and the decoder conceals it. What cannot be trusted is not shown.

    With `splices` the times are those of the joined timeline; the position must then be the start of the file.
    """
    is_video = stream.codec_context.type == "video"
    starts = sorted((splice for splice in splices if splice.stream == stream.index), key=lambda splice: splice.packet)
    number, failed, offset = 0, 0, 0
    lost_from: int | None = None  # presentation time of the first picture that is lost
    distrusted = 0
    packets = container.demux(stream)
    while failed < DAMAGED_PACKETS:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.MemoryError:
            raise MemoryError from None
        except (FFmpegError, OSError):  # the rest of the file cannot be read: what the decoder still holds is good
            frames, _ = _decode(stream.codec_context, None)
            yield from frames
            return
        while starts and number >= starts[0].packet:
            offset = round(starts.pop(0).offset_s / stream.time_base)
        number += 1
        if offset and packet.pts is not None:
            packet.pts += offset
        if offset and packet.dts is not None:
            packet.dts += offset
        time, filled = packet.pts, packet.size > 0
        frames, decoded = _decode(stream.codec_context, packet)
        failed = 0 if frames or not filled else failed + 1
        if is_video and not decoded and time is not None:
            lost_from, distrusted = time if lost_from is None else min(lost_from, time), 0
        for frame in frames:
            if lost_from is not None and frame.pts is not None and frame.pts >= lost_from:
                distrusted += 1
                if not frame.key_frame and distrusted <= LONGEST_DISTRUST:
                    continue
                lost_from, frame.opaque = None, AFTER_LOSS
            yield frame


def _decode(codec: Any, packet: Any) -> tuple[list[Any], bool]:
    """(frames that the decoder vouches for, whether the packet could be decoded)."""
    try:
        frames = codec.decode(packet)
    except av.error.MemoryError:
        raise MemoryError from None
    except (FFmpegError, ValueError):
        return [], False
    return [frame for frame in frames if not frame.is_corrupt], True
