import io
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Literal
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirasol_cli.datasets.example import Candidate, ClipSpan
from mirasol_cli.datasets.resolver import VideoIndex, is_hostile, span_to_read, split_suffix, tar_members, unpack
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import write


def index(root: Path, *names: str) -> VideoIndex:
    return VideoIndex(write(root, dict.fromkeys(names, "x")))


@pytest.mark.parametrize(
    ("on_disk", "name"),
    [
        ("-4wsuPCjDBc_5_15.avi", "-4wsuPCjDBc_5_15"),  # starts like a shell option
        ("--9O4XZOge4_000030.mp4", "--9O4XZOge4_000030"),
        ("v_v_UmAH95xls.mkv", "v_v_UmAH95xls"),
        ("a/b c/_ucD-3rUWWE.webm", "_ucD-3rUWWE"),
        ("1164/2574374895.mp4", "2574374895"),
        ("x/1164/2574374895.mp4", "1164/2574374895"),
        ("P01/videos/P01_01.MP4", "P01_01"),
        ("videos/train/P01/P01_01.MP4", "P01_01"),
        ("two..dots.mp4", "two..dots"),
        ("id_30.000.mp4", "id_30.000"),  # not every dot starts a suffix
        ("v_abc.mp4.webm", "v_abc"),  # a downloader's habit
        ("v_abc.mp4.webm", "v_abc.mp4.webm"),
        ("clip.mp4", "./clip.mp4"),
        ("Clip.MoV", "Clip.mov"),
        ("sub/ünï côde.m4v", "ünï côde"),
    ],
)
def test_every_kind_of_name_is_found(tmp_path: Path, on_disk: str, name: str) -> None:
    videos = index(tmp_path, on_disk, "other.mp4")
    assert videos.find([name]) == tmp_path / on_disk
    assert not videos.duplicates


def test_ids_are_case_sensitive_and_suffixes_are_not(tmp_path: Path) -> None:
    videos = index(tmp_path, "abc.mp4", "d/ABC.MP4")
    assert videos.find(["ABC"]) == tmp_path / "d/ABC.MP4"
    assert videos.find(["Abc"]) is None


def test_the_first_candidate_that_fits_wins_and_says_what_the_file_holds(tmp_path: Path) -> None:
    videos = index(tmp_path, "abc_000030.mp4", "abc.mp4")
    found = videos.locate([Candidate("abc_30"), Candidate("abc_000030", True), Candidate("abc", None)])
    assert found is not None
    assert (found.path.name, found.whole) == ("abc_000030.mp4", True)
    source = videos.locate([Candidate("nothing"), Candidate("abc", whole=False)])
    assert source is not None
    assert source.whole is False


def test_a_name_with_a_suffix_must_have_it(tmp_path: Path) -> None:
    videos = index(tmp_path, "a.webm", "b.mp4", "b.webm")
    assert videos.find(["a.mp4"]) is None
    assert videos.find(["a.mp4", "a"]) == tmp_path / "a.webm"
    assert videos.find(["b.webm"]) == tmp_path / "b.webm"
    assert not videos.duplicates


def test_a_file_with_an_unknown_suffix_is_found_by_its_full_name_only(tmp_path: Path) -> None:
    videos = index(tmp_path, "sub/a.abc", "b.m4a")
    assert len(videos) == 0
    assert videos.find(["sub/a.abc"]) == tmp_path / "sub/a.abc"
    assert videos.find(["a", "sub/a", "a.abc"]) is None
    assert videos.find(["b.m4a"]) == tmp_path / "b.m4a"


def test_a_file_without_a_suffix_is_found_by_its_full_name_only(tmp_path: Path) -> None:
    videos = index(tmp_path, "sub/noext", "other")
    assert videos.find(["sub/noext"]) == tmp_path / "sub/noext"
    assert videos.find(["./other"]) == tmp_path / "other"
    assert videos.find(["noext", "sub", "sub/oth"]) is None


@pytest.mark.parametrize("suffix", [".m2ts", ".MTS", ".vob", ".mxf", ".asf", ".f4v", ".y4m"])
def test_rarer_videos_are_found_by_their_stem(tmp_path: Path, suffix: str) -> None:
    assert index(tmp_path, f"sub/a{suffix}").find(["a"]) == tmp_path / f"sub/a{suffix}"


@pytest.mark.parametrize(("on_disk", "named"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_the_other_unicode_form_are_found(tmp_path: Path, on_disk: Literal["NFC", "NFD"], named: Literal["NFC", "NFD"]) -> None:
    there, wanted = (unicodedata.normalize(form, "é/café.mp4") for form in (on_disk, named))
    bare, wanted_bare = (unicodedata.normalize(form, "é/naïf") for form in (on_disk, named))
    videos = index(tmp_path, there, bare)
    for name in (wanted, wanted.removesuffix(".mp4"), wanted.rpartition("/")[2]):
        assert videos.find([name]) == tmp_path / there
    assert videos.find([wanted_bare]) == tmp_path / bare
    assert not videos.duplicates


def test_each_unicode_form_is_its_own_file_where_both_are_there(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café.mp4") for form in ("NFC", "NFD")]
    videos = index(tmp_path, *names)
    assert [videos.find([name]) for name in names] == [tmp_path / name for name in names]
    assert not videos.duplicates


def test_sound_alone_counts_where_asked_for_and_gives_way_to_video(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["as/a.wav", "as/b.flac", "as/b.mp4"], "x"))
    without, audio = VideoIndex(tmp_path), VideoIndex(tmp_path, audio=True)
    assert (len(without), without.audio_files, len(audio)) == (1, 2, 3)
    assert without.find(["a"]) is None
    assert audio.find(["a"]) == tmp_path / "as/a.wav"
    assert audio.find(["b"]) == without.find(["b"]) == tmp_path / "as/b.mp4"
    assert not audio.duplicates


def test_a_folder_without_permission_is_told_from_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = index(tmp_path, "a.mp4")
    for error, found in ((PermissionError(13, "Permission denied"), tmp_path / "locked/c.mp4"), (OSError(36, "File name too long"), None)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "is_file", Mock(side_effect=error))
            assert videos.find(["locked/c.mp4"]) == found


def test_duplicates_are_recorded_and_the_choice_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    videos = index(tmp_path, "z/a.mp4", "b/a.webm", "b/a.mp4", "deep/er/a.mp4")
    assert videos.find(["a"]) == tmp_path / "b/a.mp4"
    assert videos.duplicates == {"a": ("b/a.mp4", "z/a.mp4", "b/a.webm", "deep/er/a.mp4")}


def test_a_name_in_full_is_no_duplicate(tmp_path: Path) -> None:
    videos = index(tmp_path, "a.mp4", "sub/a.mp4")
    assert videos.find(["a.mp4"]) == tmp_path / "a.mp4"
    assert videos.find(["sub/a.mp4"]) == tmp_path / "sub/a.mp4"
    assert not videos.duplicates


HOSTILE = [
    "../secret",
    "../secret.mp4",
    "a/../../secret.mp4",
    "/etc/passwd",
    "\\\\host\\x.mp4",
    "C:\\x.mp4",
    "a\\..\\..\\secret.mp4",
    "",
    "a\0b",
    "~/x.mp4",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_find_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"secret.mp4": "x"})
    videos = index(tmp_path / "root", "a/ok.mp4")
    assert is_hostile(name)
    assert videos.find([name]) is None


def test_links_never_lead_out_of_the_root(tmp_path: Path) -> None:
    write(tmp_path, {"out/secret.mp4": "x", "out/plain.bin": "x", "root/real.mp4": "y"})
    root = tmp_path / "root"
    os.symlink(tmp_path / "out/secret.mp4", root / "file.mp4")
    os.symlink(tmp_path / "out", root / "folder")
    os.symlink(tmp_path / "out/plain.bin", root / "plain.bin")
    os.symlink(root / "real.mp4", root / "alias.mp4")
    os.symlink(root, root / "loop")
    os.symlink(root / "gone.mp4", root / "broken.mp4")
    videos = VideoIndex(root)
    assert [videos.find([name]) for name in ("file", "secret", "folder/secret", "folder/plain.bin", "plain.bin", "broken")] == [None] * 6
    assert videos.find(["alias"]) == root / "alias.mp4"
    assert videos.outside == ["file.mp4", "folder", "plain.bin"]


def test_a_root_that_is_a_link_works(tmp_path: Path) -> None:
    write(tmp_path, {"disk/a.mp4": "x"})
    os.symlink(tmp_path / "disk", tmp_path / "root")
    assert VideoIndex(tmp_path / "root").find(["a"]) == tmp_path / "root/a.mp4"


def test_a_missing_root_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*does not exist"):
        VideoIndex(tmp_path / "nowhere")


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_members_of_tars_are_found_and_unpacked(tmp_path: Path) -> None:
    make_tar(tmp_path / "sub/00000.tar", {"a.mp4": b"first" * 400_000, "./d/b.mp4": b"second", "../evil.mp4": b"no"})
    videos = VideoIndex(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name, content in (("a.mp4", b"first" * 400_000), ("d/b.mp4", b"second")):
        found = videos.locate([Candidate(f"sub/00000.tar/{name}")])
        assert found is not None
        assert found.member == name
        assert unpack(found, scratch).read_bytes() == content
    assert videos.locate([Candidate("sub/00000.tar/../evil.mp4")]) is None
    assert videos.locate([Candidate("sub/00000.tar/evil.mp4")]) is None
    assert videos.locate([Candidate("00001.tar/a.mp4")]) is None
    assert len(list(scratch.iterdir())) == 2


def test_of_a_cut_tar_the_whole_members_are_used(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    make_tar(path, {"a.mp4": b"a" * 2000, "b.mp4": b"b" * 2000})
    path.write_bytes(path.read_bytes()[:4000])
    members, problem = tar_members(path)
    assert list(members) == ["a.mp4"]
    assert problem == "it is cut off inside 'b.mp4'"
    path.write_bytes(b"<html>" * 500)
    assert tar_members(path)[0] == {}
    assert tar_members(path)[1]


CLIP = ClipSpan(video="abc", start_s=30.0, end_s=40.0)


@pytest.mark.parametrize(
    ("clip", "whole", "file_seconds", "expected"),
    [
        (CLIP, True, None, None),
        (CLIP, False, None, (30.0, 40.0)),
        (CLIP, False, 10.0, (30.0, 40.0)),
        (CLIP, None, 10.02, None),  # the clip under its bare id
        (CLIP, None, 13.0, None),  # cut at keyframes
        (CLIP, None, 240.0, (30.0, 40.0)),  # the source
        (CLIP, None, 25.0, (30.0, 40.0)),  # a source cut short: reading it fails, and must
        (CLIP, None, None, (30.0, 40.0)),
        (ClipSpan(video="abc", start_s=0.0, end_s=10.0), None, 12.0, (0.0, 10.0)),
        (ClipSpan(video="abc"), False, 12.0, None),
        (ClipSpan(video="abc", start_s=5.0), False, 12.0, (5.0, None)),
    ],
)
def test_whole_file_or_span(clip: ClipSpan, whole: bool | None, file_seconds: float | None, expected: tuple | None) -> None:
    assert span_to_read(clip, whole, file_seconds) == expected


def test_suffixes() -> None:
    assert split_suffix("a.b.MP4") == ("a.b", ".MP4")
    assert split_suffix("id_30.000") == ("id_30.000", "")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and not name.startswith(".") and len(name.encode()) < 200
)


@settings(max_examples=60, deadline=None)
@given(folders=st.lists(NAMES, max_size=2), stem=NAMES, query=st.text(max_size=30))
def test_what_is_there_is_found_and_nothing_else_ever(
    tmp_path_factory: pytest.TempPathFactory, folders: list[str], stem: str, query: str
) -> None:
    base = tmp_path_factory.mktemp("tree")
    write(base, {"outside.mp4": "x"})
    root = base / "root"
    relative = "/".join([*folders, stem])
    write(root, {f"{relative}.mp4": "x"})
    videos = VideoIndex(root)
    if not is_hostile(relative):
        assert videos.find([relative]) == root / f"{relative}.mp4"
    found = videos.find([query, f"../{query}", "../outside", f"{relative}/../../outside.mp4"])
    assert found is None or found == root / f"{relative}.mp4"


@pytest.mark.slow
def test_hundreds_of_thousands_of_files(tmp_path: Path) -> None:
    for folder in range(300):
        (tmp_path / f"{folder:03d}").mkdir()
        for file in range(1000):
            (tmp_path / f"{folder:03d}" / f"{folder:03d}{file:03d}_000030.mp4").touch()
    videos = VideoIndex(tmp_path)
    assert len(videos) == 300_000
    assert all(videos.find([f"{n:06d}_30", f"{n:06d}_000030"]) for n in range(300_000))
