"""What a media file holds: the picture, the sound that belongs to it, and how they lie in time."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirasol_cli.errors import MediaError
from mirasol_cli.media.container import decoded_frames, open_media, unreadable

STILL_FORMATS = re.compile(r"(^|,)(image2|[a-z0-9]+_pipe|ico)($|,)")
STILL_CODECS = ("png", "mjpeg", "webp", "gif", "bmp", "tiff", "jpeg2000", "apng", "jpegxl")
STILL_BRANDS = ("heic", "heix", "mif1", "avif")
ONE_FRAME_S = 0.04
"""Length of a picture that gives none."""
LONGEST_ASPECT = 16
"""A picture longer than this many times its short side is refused: scaled, it would take any amount of memory."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Facts about one file. All times are seconds on the file's own timeline, whose zero is the first instant of the
    chosen picture or sound, whichever comes first; sound and picture are aligned on it by their presentation times."""

    seconds: float  # promised length of the picture (of the sound where there is no picture)
    start_s: float  # when the picture begins; 0 unless the sound begins earlier
    width: int  # px as displayed (rotation applied); 0 without a picture
    height: int
    rotation: int  # counter-clockwise degrees that a reader must apply: 0, 90, 180 or 270
    fps: float  # mean rate as promised; it stands in where a frame lacks its own time or length
    video_codec: str | None
    audio_start_s: float | None
    zero_s: float  # presentation time, in the file, of the timeline's zero
    video_index: int | None  # stream numbers in the container
    audio_index: int | None
    video_streams: int  # pictures in the file, cover art counted
    format: str

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
        pictures = [stream for stream in container.streams.video if not _is_cover(stream) and stream.codec_context is not None]
        sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if pictures:
            return _describe_video(container, pictures, sounds)
        if sounds and allow_audio_only:
            return _describe_sound(container, container.streams.best("audio") or sounds[0])
        if len(container.streams) == 0:
            raise unreadable(path)
        hint = "only sound was found; --allow-audio-only keeps such files" if sounds else None
        raise MediaError("no video stream", hint, stage="probe")


def _describe_video(container: Any, pictures: list[Any], sounds: list[Any]) -> MediaInfo:
    video = max(pictures, key=lambda s: (_is_default(s), s.codec_context.width * s.codec_context.height, -s.index))
    audio = _sound_of(video, pictures, sounds, container)
    if _is_still(container, video):
        raise MediaError("still image", "a video is needed", stage="probe")
    frame = next(decoded_frames(container, video), None)
    if frame is None:
        raise MediaError("no readable frame", "the picture is damaged, or its codec is not supported", stage="probe")
    if frame.pts is None and video.start_time is None:
        raise MediaError("picture without times", "a bare stream; put it into a container: ffmpeg -i IN -c copy OUT.mp4", stage="probe")
    rotation = frame.rotation % 360 if frame.rotation % 90 == 0 else 0  # an invalid display matrix reads -2147483648
    width, height = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        raise MediaError(f"picture of {width}x{height} px is too narrow", stage="probe")

    video_start = _start(video)
    if video_start is None:
        video_start = float(frame.time or 0.0)
    audio_start = None if audio is None else (_start(audio) or 0.0)
    zero = video_start if audio_start is None else min(video_start, audio_start)
    seconds = _promised_seconds(container, video, video_start) or _measured_seconds(container, video, video_start)
    return MediaInfo(
        seconds=seconds, start_s=video_start - zero, width=width, height=height, rotation=rotation,
        fps=float(video.average_rate or video.guessed_rate or 0.0),
        video_codec=video.codec_context.name, audio_start_s=None if audio_start is None else audio_start - zero,
        zero_s=zero, video_index=video.index, audio_index=None if audio is None else audio.index,
        video_streams=len(container.streams.video), format=container.format.name,
    )  # fmt: skip


def _describe_sound(container: Any, audio: Any) -> MediaInfo:
    zero = _start(audio) or 0.0
    seconds = _promised_seconds(container, audio, zero) or _measured_seconds(container, audio, zero)
    return MediaInfo(
        seconds=seconds, start_s=0.0, width=0, height=0, rotation=0, fps=0.0, video_codec=None,
        audio_start_s=0.0, zero_s=zero,
        video_index=None, audio_index=audio.index, video_streams=0, format=container.format.name,
    )  # fmt: skip


def _sound_of(video: Any, pictures: list[Any], sounds: list[Any], container: Any) -> Any | None:
    """The sound that belongs to `video`: of its program where the format has programs (FFmpeg's own choice), else,
    where a file holds as many sounds as pictures, the one of the same rank; else FFmpeg's choice."""
    if not sounds:
        return None
    if len(pictures) == len(sounds) and "mpegts" not in container.format.name:
        return sounds[pictures.index(video)]
    chosen = container.streams.best("audio", related=video)
    return chosen if chosen in sounds else sounds[0]


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in _disposition(stream)


def _is_default(stream: Any) -> bool:
    return "default" in _disposition(stream)


def _disposition(stream: Any) -> str:
    return str(getattr(stream.disposition, "name", "") or "").lower()


def _is_still(container: Any, video: Any) -> bool:
    if STILL_FORMATS.search(container.format.name):
        return True
    if container.metadata.get("major_brand", "").strip().lower() in STILL_BRANDS:
        return True
    one = video.frames == 1 or (video.frames == 0 and video.duration in (None, 1))
    return one and video.codec_context.name in STILL_CODECS


def _start(stream: Any) -> float | None:
    return None if stream.start_time is None else float(stream.start_time * stream.time_base)


def _promised_seconds(container: Any, stream: Any, start: float) -> float | None:
    """Length by the stream's header, else by Matroska's DURATION tag, else by the container's header."""
    if stream.duration:
        return _positive(float(stream.duration * stream.time_base))
    match = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match:
        hours, minutes, seconds = match.groups()
        return _positive(int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start)
    if not container.duration:
        return None
    end = container.duration / 1e6
    if "matroska" not in container.format.name:  # Matroska's header holds the end, not the length
        end += (container.start_time or 0) / 1e6
    return _positive(end - start)


def _measured_seconds(container: Any, stream: Any, start: float) -> float:
    """Length by reading (not decoding) every packet: for streams whose headers promise nothing."""
    end = start
    with contextlib.suppress(OSError):
        container.seek(0)
    with contextlib.suppress(OSError):
        for packet in container.demux(stream):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return _positive(end - start) or ONE_FRAME_S


def _positive(seconds: float) -> float | None:
    return seconds if seconds > 0 else None
