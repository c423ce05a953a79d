"""From the VIDEO argument to model input: find the file, decode it in a child process, encode it once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirasol_cli.demo.world import SCENE_NAME
from mirasol_cli.errors import DataError, MediaError, UsageError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.inference.answerer import Answerer
from mirasol_cli.media.sampling import ClipRequest
from mirasol_cli.model.text_decoder import TextKV
from mirasol_cli.sample import AudioState

if TYPE_CHECKING:
    from mirasol_cli.media.decode_pool import DecodePool

SAMPLE_CLIP = Path(__file__).parents[1] / "assets" / "demo.mp4"
HINTS = {
    "no video stream": "the file has audio only, and this model needs video",
    "truncated": "download it again, or use --end to ask about the readable part",
}
"""Reasons whose usual hint names an option of `prepare`."""
SPARSE = 2.0
"""OURS: from this multiple of the usual length on, the frames of a video that is read whole lie further apart than a user expects."""
HARDLY_LONGER = 1.05
"""OURS: up to this multiple of the usual length a span is read whole. Clips of one nominal length differ by a frame or a packet
of sound, and 5 % of them may exceed the usual length; cut in two, their chunks would last half as long as those of training."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".heic"})


@dataclass
class OpenClip:
    """A video, encoded: any number of questions can be asked about it."""

    path: str
    text_kv: TextKV
    seconds: float  # of the span that was looked at
    start_s: float
    frames: int  # looked at
    chunks: int
    audio: str  # none, silent or audible
    sampled: str  # in words
    warnings: list[str] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)  # "open" in all; of it "decode" and "encode", see `open_clip`
    sample: dict[str, Any] | None = None  # the shard fields; None where the video went through piece by piece

    @property
    def chunk_seconds(self) -> float:
        return self.seconds / self.chunks


def find_video(video: str) -> Path:
    """The file that VIDEO means; `demo` is the sample clip in the package where no such file exists.

    Raises:
        UsageError: a URL.
        MediaError, DataError: nothing there, a folder, or a still image; each says what to do.
    """
    if re.match(r"[a-z][a-z0-9+.-]+://", video, re.IGNORECASE):
        raise UsageError(f"'{video}' is a URL; mirasol reads files", "download the video and pass the path of the file")
    path = Path(video)
    if video == "demo" and not path.exists():
        if not SAMPLE_CLIP.is_file():
            raise DataError("this installation has no sample clip", "pass the path of a video file")
        return SAMPLE_CLIP
    if path.is_dir():
        raise MediaError(f"'{video}' is a folder", "pass a video file inside it", stage="probe")
    if path.exists() and not path.is_file():
        raise MediaError(f"'{video}' is not a regular file", "pass a video file", stage="probe")
    if not path.is_file():
        near = _near_name(path)
        raise MediaError(f"the file '{video}' does not exist", f"did you mean '{near}'?" if near else "check the path", stage="probe")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise MediaError(f"'{video}' is a still image", "pass a video", stage="probe")
    return path


def is_of_demo_world(path: Path) -> bool:
    """The sample clip in the package, or a file under the name that `mirasol prepare demo` or `demo-long` gave it."""
    return path.resolve() == SAMPLE_CLIP.resolve() or bool(SCENE_NAME.fullmatch(path.stem))


def _near_name(path: Path) -> Path | None:
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.exists()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return path.parent / near[0] if near else None


def usual_seconds(geometry: ClipGeometry) -> float:
    """OURS: what counts as an ordinary length where the checkpoint does not know its training clips: the longest span whose
    spectrogram needs no pooling."""
    audio = geometry.audio
    return geometry.chunks * audio.columns * audio.hop_length / audio.sample_rate


def open_clip(
    answerer: Answerer, path: Path, start_s: float | None = None, end_s: float | None = None, *,
    usual_s: float | None = None, say: Callable[[str], None] = lambda _: None,
) -> OpenClip:  # fmt: skip
    """Decode and encode a video, or the span of it from `start_s` to `end_s` (seconds).

    A span longer than `usual_s` (the training clips' length; `usual_seconds` by default) goes through in pieces of
    fixed seconds where the Combiner has a memory (TTM): the answer then rests on that memory and on the latents of the
    last piece. Elsewhere its frames are spread over all of it, and a warning says so from twice the usual length on.

    Pieces that cannot be decoded are left out, and a warning says how many.

    Returns:
        The clip. `timings_s["decode"]` is the time that this process spent waiting for decoded media: all of the decoding for
        a span that is looked at whole; in pieces only what encoding did not cover, since the next piece is decoded meanwhile.

    Raises:
        UsageError: an empty span.
        MediaError: the file cannot be used; the message names file and reason.
    """
    from mirasol_cli.media.decode_pool import DecodePool

    for name, second in (("--start", start_s), ("--end", end_s)):
        if second is not None and not 0 <= second < float("inf"):
            raise UsageError(f"{name} {second:g} is not a valid time", "give seconds from the beginning of the video")
    if start_s is not None and end_s is not None and start_s >= end_s:
        raise UsageError(f"--start {start_s:g} must be before --end {end_s:g}")
    # One worker: results come in the order of the jobs. A model of sound alone needs no video.
    with _named(path), DecodePool(1, answerer.geometry, allow_audio_only=not answerer.modalities["video"]) as pool:
        began = time.perf_counter()
        pool.submit_probe("probe", path)
        info = _next_result(pool)
        first, last = max(start_s or 0.0, info.start_s), min(info.end_s if end_s is None else end_s, info.end_s)
        if last <= first:
            raise MediaError(
                f"the span starting at {start_s or 0:g} s lies outside the video, which ends at {info.end_s:.1f} s",
                "change --start or --end",
            )
        known_s, usual_s = usual_s, usual_s or usual_seconds(answerer.geometry)
        if last - first > HARDLY_LONGER * usual_s and answerer.model.config.combiner.kind == "ttm":
            clip = _open_in_pieces(answerer, pool, path, first, last, usual_s, say)
        else:
            clip = _open_whole(answerer, pool, path, ClipRequest(start_s=start_s, end_s=end_s))
            if answerer.modalities["video"] and clip.seconds > SPARSE * usual_s:
                clip.warnings.append(_sparse(clip, known_s))
        clip.timings_s["open"] = time.perf_counter() - began
    if clip.audio == "none":
        clip.warnings.append("the video has no audio")
    elif clip.audio == "silent":
        clip.warnings.append("the audio track is silent and is ignored")
    elif not answerer.modalities["audio"]:
        clip.warnings.append("this model was trained without audio; the audio is ignored")
    if not answerer.modalities["video"] and info.video_index is not None:
        clip.warnings.append("this model was trained without video; the video is ignored")
    return clip


def _sparse(clip: OpenClip, known_s: float | None) -> str:
    """What to say of a span whose frames lie far apart; `known_s`: the training clips' length where the checkpoint tells it."""
    trained = f", and the model was trained on clips of up to {known_s:.3g} s" if known_s else ""
    return (
        f"only {clip.frames} frames were sampled, one every {clip.seconds / clip.frames:.2g} s{trained}; "
        "use --start and --end to look at a part in more detail"
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A MediaError tells a reason; here it also names the file, and the way out is one that `ask` has."""
    try:
        yield
    except MediaError as error:
        hint = next((hint for reason, hint in HINTS.items() if error.reason.startswith(reason)), error.hint)
        raise MediaError(f"'{path}' cannot be read: {error.message}", hint, stage=error.stage) from None


def _next_result(pool: DecodePool) -> Any:
    """The result of the one job that is waiting. Raises the MediaError that it may be."""
    _, (result,) = next(pool.results())
    if isinstance(result, MediaError):
        raise result
    return result


def _open_whole(answerer: Answerer, pool: DecodePool, path: Path, request: ClipRequest) -> OpenClip:
    began = time.perf_counter()
    pool.submit("clip", path, [request])
    sample = _next_result(pool)
    decoded = time.perf_counter()
    text_kv = answerer.encode([sample])
    start, end = (float(second) for second in sample["span"])
    geometry = answerer.geometry
    looked_at = f"{geometry.frames} frames spread over" if answerer.modalities["video"] else "the audio of"
    real = int(np.asarray(sample["frame_valid"]).sum())
    clip = OpenClip(
        path=str(path), text_kv=text_kv, seconds=end - start, start_s=start, frames=geometry.frames, chunks=geometry.chunks,
        audio=AudioState(int(sample["audio_state"])).word, sample=sample,
        sampled=f"{looked_at} {end - start:.1f} s, in {geometry.chunks} chunks",
        timings_s={"decode": decoded - began, "encode": time.perf_counter() - decoded},
    )  # fmt: skip
    if answerer.modalities["video"] and real < geometry.frames:
        clip.warnings.append(f"the span has only {real} distinct frames of {geometry.frames} sampled; the rest are masked")
    return clip


def _open_in_pieces(
    answerer: Answerer, pool: DecodePool, path: Path, start_s: float, end_s: float, piece_s: float, say: Callable[[str], None]
) -> OpenClip:  # fmt: skip
    """Pieces of about `piece_s`, in constant memory for any length: one is decoded while the model reads the one before.

    Raises MediaError, that of the first piece, if not one can be decoded.
    """
    geometry = answerer.geometry
    count = int(np.ceil((end_s - start_s) / piece_s))
    edges = np.linspace(start_s, end_s, count + 1)
    requests = [ClipRequest(start_s=float(first), end_s=float(last)) for first, last in pairwise(edges)]
    state = text_kv = None
    states: set[int] = set()
    lost: dict[int, MediaError] = {}
    timings = {"decode": 0.0, "encode": 0.0}
    for number in range(2):  # the pool works on the second while the first is used
        pool.submit(number, path, [requests[number]])
    began = time.perf_counter()
    for number, (_, (sample,)) in enumerate(pool.results()):
        if number + 2 < count:
            pool.submit(number + 2, path, [requests[number + 2]])
        decoded = time.perf_counter()
        timings["decode"] += decoded - began
        if isinstance(sample, MediaError):
            lost[number] = sample
        else:
            states.add(int(sample["audio_state"]))
            text_kv, state = answerer.encode_further(sample, state)
        began = time.perf_counter()
        timings["encode"] += began - decoded
        if number % 20 == 19:
            say(f"read {number + 1} of {count} pieces")
    if text_kv is None:
        raise lost[0]
    each = (end_s - start_s) / (count * geometry.chunks)
    clip = OpenClip(
        path=str(path), text_kv=text_kv, seconds=end_s - start_s, start_s=start_s, frames=count * geometry.frames,
        chunks=count * geometry.chunks, audio=AudioState(max(states)).word, timings_s=timings,
        sampled=f"{count * geometry.frames} frames in {count * geometry.chunks} chunks of {each:.2f} s, processed in order with a "
        f"memory; the answer uses the memory and the last {geometry.chunks} chunks",
    )  # fmt: skip
    if lost:
        seconds = (end_s - start_s) / count
        first = edges[min(lost)]
        clip.warnings.append(
            f"{len(lost)} of {count} pieces of {seconds:.0f} s could not be decoded and are skipped, the first at {first:.0f} s"
        )
    return clip
