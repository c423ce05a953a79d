"""What a media file holds: the video stream, the audio stream that belongs to it, and their timing."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from av.error import FFmpegError

from mirasol_cli.errors import MediaError
from mirasol_cli.media.container import decoded_frames, open_media, unreadable
from mirasol_cli.media.display import Orientation, displayed_size, orientation_of, pixel_aspect
from mirasol_cli.media.packets import PacketScan, Splice, scan_clocks

STILL_FORMATS = re.compile(r"(^|,)(image2|[a-z0-9]+_pipe|ico)($|,)")
STILL_CODECS = ("png", "mjpeg", "webp", "gif", "bmp", "tiff", "jpeg2000", "apng", "jpegxl")
STILL_BRANDS = ("heic", "heix", "mif1", "avif")
ONE_FRAME_S = 0.04
"""Length of a picture that gives none."""
CLOCKED_FORMATS = ("mpegts", "mpeg", "flv")
"""Formats made for broadcast: parts with clocks of their own may follow one another, and no index tells."""
ANIMATED_MARKS = (b"acTL", b"ANIM")
"""What animated PNG and WebP hold near their beginning."""
LONGEST_ASPECT = 16
"""A picture longer than this many times its short side is refused: scaled, it would take any amount of memory."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Facts about one file. All times are seconds on the file's own timeline, whose zero is the first instant of the
    chosen picture or sound, whichever comes first; sound and picture are aligned on it by their presentation times."""

    seconds: float  # promised length of the picture (of the sound where there is no picture)
    start_s: float  # when the picture begins; 0 unless the sound begins earlier
    width: int  # px as displayed (turned, with square pixels); 0 without a picture
    height: int
    orientation: Orientation  # what a reader must do to the decoded picture
    pixel_aspect: float  # width over height of a stored pixel
    fps: float  # mean rate as promised; it stands in where a frame lacks its own time or length
    video_codec: str | None
    audio_start_s: float | None
    zero_s: float  # presentation time, in the file, of the timeline's zero
    video_index: int | None  # stream numbers in the container
    audio_index: int | None
    video_streams: int  # pictures in the file, cover art counted
    format: str
    splices: tuple[Splice, ...] = ()  # where clocks jump; such a file is read from its start, never sought in

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


def probe(path: Path | str, *, allow_audio_only: bool = False) -> MediaInfo:
    """Facts about the file; its first frame is decoded, so that size and rotation are true ones.

    Raises:
        MediaError: reasons "file not found", "a folder, not a file", "a URL, not a file", "empty file", "not a media file",
            "moov atom not found (truncated?)", "no video stream", "still image", "no readable frame", ...
    """
    with open_media(path) as container:
        video_streams = [stream for stream in container.streams.video if not _is_cover(stream) and stream.codec_context is not None]
        audio_streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if video_streams:
            return _describe_video(container, video_streams, audio_streams)
        if audio_streams and allow_audio_only:
            return _describe_audio(container, container.streams.best("audio") or audio_streams[0])
        if len(container.streams) == 0:
            raise unreadable(path)
        hint = "the file has audio only; --allow-audio-only accepts such files" if audio_streams else None
        raise MediaError("no video stream", hint, stage="probe")


def _describe_video(container: Any, video_streams: list[Any], audio_streams: list[Any]) -> MediaInfo:
    video = max(video_streams, key=lambda s: (_is_default(s), s.codec_context.width * s.codec_context.height, -s.index))
    audio = _audio_of(video, video_streams, audio_streams, container)
    _refuse_stills(container, video)
    scan = _scan(container, [video.index] if audio is None else [video.index, audio.index])
    frame = next(decoded_frames(container, video), None)
    if frame is None:
        raise MediaError("no readable frame", "the video is damaged, or its codec is not supported", stage="probe")
    if frame.pts is None and video.start_time is None:
        raise MediaError("picture without times", "a bare stream; put it into a container: ffmpeg -i IN -c copy OUT.mp4", stage="probe")
    orientation, aspect = orientation_of(frame), pixel_aspect(video)
    width, height = displayed_size(frame, aspect, orientation)
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        raise MediaError(f"picture of {width}x{height} px is too narrow", stage="probe")

    video_start = _start(video)
    if video_start is None:
        video_start = float(frame.time or 0.0)
    audio_start = None if audio is None else (_start(audio) or 0.0)
    zero = video_start if audio_start is None else min(video_start, audio_start)
    return MediaInfo(
        seconds=_seconds(container, video, video_start, scan), start_s=video_start - zero, width=width, height=height,
        orientation=orientation, pixel_aspect=aspect, fps=float(video.average_rate or video.guessed_rate or 0.0),
        video_codec=video.codec_context.name, audio_start_s=None if audio_start is None else audio_start - zero,
        zero_s=zero, video_index=video.index, audio_index=None if audio is None else audio.index,
        video_streams=len(container.streams.video), format=container.format.name, splices=scan.splices,
    )  # fmt: skip


def _describe_audio(container: Any, audio: Any) -> MediaInfo:
    scan = _scan(container, [audio.index])
    zero = _start(audio) or 0.0
    return MediaInfo(
        seconds=_seconds(container, audio, zero, scan), start_s=0.0, width=0, height=0,
        orientation=Orientation(), pixel_aspect=1.0, fps=0.0, video_codec=None,
        audio_start_s=0.0, zero_s=zero,
        video_index=None, audio_index=audio.index, video_streams=0, format=container.format.name, splices=scan.splices,
    )  # fmt: skip


def _audio_of(video: Any, video_streams: list[Any], audio_streams: list[Any], container: Any) -> Any | None:
    """The sound that belongs to `video`: of its program where the format has programs (FFmpeg's own choice), else,
    where a file holds as many sounds as pictures, the one of the same rank; else FFmpeg's choice."""
    if not audio_streams:
        return None
    if len(video_streams) == len(audio_streams) and "mpegts" not in container.format.name:
        return audio_streams[video_streams.index(video)]
    chosen = container.streams.best("audio", related=video)
    return chosen if chosen in audio_streams else audio_streams[0]


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in _disposition(stream)


def _is_default(stream: Any) -> bool:
    return "default" in _disposition(stream)


def _disposition(stream: Any) -> str:
    return str(getattr(stream.disposition, "name", "") or "").lower()


def _refuse_stills(container: Any, video: Any) -> None:
    """Raise `MediaError` for one picture in a file, and for the animated formats of browsers."""
    with open(container.name, "rb") as file:
        head = file.read(4096)
    still_format = STILL_FORMATS.search(container.format.name) or container.format.name == "apng"
    if still_format and any(mark in head for mark in ANIMATED_MARKS):
        raise MediaError("animated picture", "animated PNG and WebP are not read; ffmpeg -i IN OUT.mp4 makes a video", stage="probe")
    brand = container.metadata.get("major_brand", "").strip().lower()
    if still_format or brand in STILL_BRANDS or _is_single_frame(container, video):
        raise MediaError("still image", "a video is needed", stage="probe")


def _is_single_frame(container: Any, video: Any) -> bool:
    """Whether a stream of pictures that are whole by themselves holds just one. Not every header tells: Matroska's never does."""
    if video.codec_context.name not in STILL_CODECS or video.frames > 1:
        return False
    if video.frames == 1:
        return True
    packets = 0
    with contextlib.suppress(FFmpegError, OSError):
        for packet in container.demux(video):
            packets += packet.size > 0
            if packets > 1:
                break
    _rewind(container)
    return packets < 2


def _scan(container: Any, indices: list[int]) -> PacketScan:
    """The clocks of a format whose clocks may jump, in an opening of its own (not all of them can be rewound); of others, nothing."""
    if not container.format.name.startswith(CLOCKED_FORMATS):
        return PacketScan()
    with open_media(container.name) as again:
        return scan_clocks(again, [again.streams[index] for index in indices])


def _rewind(container: Any) -> None:
    with contextlib.suppress(FFmpegError, OSError):
        container.seek(0)


def _start(stream: Any) -> float | None:
    return None if stream.start_time is None else float(stream.start_time * stream.time_base)


def _seconds(container: Any, stream: Any, start: float, scan: PacketScan) -> float:
    """Length of `stream`: by its packets where they were walked over, else as promised, else by a walk."""
    scanned = _positive(scan.end_s.get(stream.index, 0.0) - start)
    return scanned or _promised_seconds(container, stream, start) or _measured_seconds(container, stream, start)


def _promised_seconds(container: Any, stream: Any, start: float) -> float | None:
    """Length by the stream's header, else by Matroska's DURATION tag, else by the container's header."""
    if container.format.name == "avi" and stream.frames and stream.average_rate and stream.type == "video":
        return _positive(float(stream.frames / stream.average_rate))  # FFmpeg cuts the duration to what is there
    if stream.duration:
        return _positive(float(stream.duration * stream.time_base))
    match = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match:
        hours, minutes, seconds = match.groups()
        return _positive(int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start)
    if not container.duration:
        return None
    end = container.duration / 1e6
    if "matroska" not in container.format.name and container.format.name != "flv":  # their headers hold the end, not the length
        end += (container.start_time or 0) / 1e6
    return _positive(end - start)


def _measured_seconds(container: Any, stream: Any, start: float) -> float:
    """Length by reading (not decoding) every packet: for streams whose headers promise nothing."""
    end = start
    _rewind(container)
    with contextlib.suppress(OSError):
        for packet in container.demux(stream):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return _positive(end - start) or ONE_FRAME_S


def _positive(seconds: float) -> float | None:
    return seconds if seconds > 0 else None
