"""What strangers have on disk: each input costs one clear sentence."""

import os
import socket
from types import SimpleNamespace

import av
import numpy as np
import pytest

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.container import decoded_frames
from mirasol_cli.media.decode import decode_clips, probe
from mirasol_cli.media.display import Orientation
from mirasol_cli.media.sampling import ClipRequest
from tests.media.made_clips import barcode, clicks, regular, write_clip

GEOMETRY = ClipGeometry(frames=32, chunks=4, size=64)


def write_still(path, codec, pix_fmt):
    with av.open(
        str(path), "w", format="gif" if codec == "gif" else "image2", options={} if codec == "gif" else {"update": "1"}
    ) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(barcode(7, 96, 64)), format="rgb24").reformat(format=pix_fmt)
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def make(folder, name):
    """The path of the broken input `name`."""
    path = folder / f"{name}.mp4"
    if name == "empty":
        path.touch()
    elif name == "html":
        path.write_text("<!doctype html><html><head><title>404</title></head><body>Video unavailable</body></html>" * 20)
    elif name == "random":
        path.write_bytes(np.random.default_rng(0).bytes(100_000))
    elif name == "text":
        path.write_text("this is not a video\n")
    elif name == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://localhost:1/a.ts\n#EXT-X-ENDLIST\n")
    elif name == "concat":
        write_clip(folder / "other.mp4", regular(5, 25))
        path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    elif name == "no index":
        whole = write_clip(folder / "whole.mp4", regular(50, 25)).read_bytes()
        path.write_bytes(whole[: len(whole) * 6 // 10])
    elif name == "garbled index":
        whole = bytearray(write_clip(folder / "whole.mp4", regular(50, 25)).read_bytes())
        at = whole.index(b"moov") + 4
        whole[at : at + 120] = np.random.default_rng(1).bytes(120)
        path.write_bytes(whole)
    elif name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "link to nowhere":
        path.symlink_to(folder / "gone")
    elif name == "sound only":
        write_clip(path, None, audio=clicks([0.5], 1.0))
    elif name in ("png", "jpeg", "gif"):
        path = folder / f"{name}-as.mp4"
        write_still(path, {"jpeg": "mjpeg"}.get(name, name), {"png": "rgb24", "jpeg": "yuvj420p", "gif": "rgb8"}[name])
    elif name == "needle":
        write_clip(path, regular(3, 25), size=(1152, 64))
    elif name == "lost data":
        whole = bytearray(
            write_clip(folder / "whole.mp4", regular(100, 25), keyframe_every=5, mux_options={"movflags": "faststart"}).read_bytes()
        )
        at = whole.index(b"mdat") + 8
        whole[at:] = bytes(len(whole) - at)
        path.write_bytes(whole)
    return path


EXPECTED = {
    "empty": "empty file",
    "html": "not a media file",
    "random": "not a media file",
    "text": "not a media file",
    "playlist": "not a media file",
    "concat": "not a media file",
    "no index": "moov atom not found (truncated?)",
    "garbled index": "damaged file",
    "folder": "a folder, not a file",
    "pipe": "not a regular file",
    "link to nowhere": "file not found",
    "missing": "file not found",
    "sound only": "no video stream",
    "png": "still image",
    "jpeg": "still image",
    "gif": "still image",
    "needle": "picture of 1152x64 px is too narrow",
    "lost data": "no readable frame",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_reason_is_short_and_right(tmp_path, name):
    path = make(tmp_path, name)
    with pytest.raises(MediaError) as caught:
        list(decode_clips(path, [ClipRequest()], GEOMETRY))
    assert caught.value.reason == EXPECTED[name]
    assert caught.value.exit_code == 4
    if name == "sound only":
        assert "--allow-audio-only" in caught.value.hint


@pytest.mark.parametrize("address", ["https://example.com/a.mp4", "http:/a.mp4", "concat:a.mp4|b.mp4/", "file:///etc/passwd"])
def test_an_address_is_no_file(address):
    with pytest.raises(MediaError, match="a URL, not a file" if ":/" in address else "file not found"):
        probe(address)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_a_playlist_reaches_no_server(tmp_path, name):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(MediaError, match="not a media file"):
            probe(tmp_path / name)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_frames_that_the_decoder_calls_corrupt_are_left_out():
    frames = [SimpleNamespace(is_corrupt=bad, number=k, pts=k) for k, bad in enumerate([False, True, True, False])]
    packets = [SimpleNamespace(size=1, pts=k, frames=frames[2 * k : 2 * k + 2]) for k in range(2)]
    codec = SimpleNamespace(decode=lambda packet: packet.frames, type="video")
    stream = SimpleNamespace(codec_context=codec)
    seen = decoded_frames(SimpleNamespace(demux=lambda stream: iter(packets)), stream)
    assert [frame.number for frame in seen] == [0, 3]


def test_names_are_never_taken_for_protocols_or_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "concat:a.mp4", "a%03d.mp4", "ü 你 .mp4", "--help.mp4"):
        (tmp_path / name).write_bytes(write_clip(tmp_path / "whole.mp4", regular(25, 25)).read_bytes())
        (clip,) = decode_clips(name, [ClipRequest()], GEOMETRY)
        assert clip.frame_valid.sum() == 25


def test_an_invalid_rotation_counts_as_none(tmp_path):
    path = write_clip(tmp_path / "turned.mp4", regular(25, 25), rotation=90)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"tkhd") + 4 + 40  # the matrix of the only track
    content[at : at + 8] = bytes(8)
    content[at + 12 : at + 20] = bytes(8)
    path.write_bytes(content)
    info = probe(path)
    assert (info.orientation, info.width, info.height) == (Orientation(), 128, 192)
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY)
    assert clip.frame_valid.all() or clip.frame_valid.sum() == 25


def test_damage_in_the_middle_is_kept_as_what_was_decoded(tmp_path):
    whole = bytearray(
        write_clip(tmp_path / "whole.mp4", regular(250, 25), keyframe_every=25, mux_options={"movflags": "faststart"}).read_bytes()
    )
    data = whole.index(b"mdat") + 8
    third = (len(whole) - data) // 3
    whole[data + third : data + third + third // 2] = bytes(third // 2)
    path = tmp_path / "hole.mp4"
    path.write_bytes(whole)
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY)
    assert 16 <= clip.frame_valid.sum() < 32
    assert clip.frame_valid[0]
    assert clip.frame_valid[-1]
    assert np.isnan(clip.frame_times_s).any()
    assert (np.diff(clip.frame_times_s[clip.frame_valid]) > 0).all()
