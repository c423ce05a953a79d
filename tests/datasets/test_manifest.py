import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirasol_cli.datasets.example import CAPTION_PROMPT, ClipSpan, Text
from mirasol_cli.datasets.manifest import candidates, read_manifest
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import write
from tests.paths import SHARED


def jsonl(root: Path, *rows: object) -> Path:
    write(root, {"m.jsonl": "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)})
    return root / "m.jsonl"


def texts(root: Path, *rows: object) -> tuple[Text, ...]:
    (split,) = read_manifest(jsonl(root, *rows))
    assert (split.name, split.task) == ("train", "qa")
    return split.texts


def faults(path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert str(path) in caught.value.message
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


def test_a_line_with_caption_and_question_gives_two_texts(tmp_path: Path) -> None:
    both = texts(
        tmp_path, {"video": "a.mp4", "caption": "a dog", "question": "what?", "answer": "dog", "context": "home video", "type": "x"}
    )
    assert [(text.id, text.question, text.answer, text.type) for text in both] == [
        ("1/caption", CAPTION_PROMPT, "a dog", ""),
        ("1/question", "what?", "dog", "x"),
    ]
    assert {text.clip for text in both} == {ClipSpan(video="a.mp4")}
    assert {text.context for text in both} == {"home video"}


def test_ids_spans_splits_and_unknown_keys(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"video": "a.mp4", "start": "00:01:02.5", "end": 70, "caption": "x", "id": "mine", "split": "validation", "has_audio": True},
        "",
        {"video": "a.mp4", "end": "4", "caption": "y", "transcript": ["ignored"]},
    )
    first, second = read_manifest(path)
    assert first.notes == ("split 'validation' is read as 'val'",)
    assert (first.name, first.texts[0].id, first.clips) == ("val", "mine", (ClipSpan(video="a.mp4", start_s=62.5, end_s=70.0),))
    assert (second.name, second.texts[0].id, second.clips) == ("train", "3", (ClipSpan(video="a.mp4", start_s=0.0, end_s=4.0),))
    assert [c.whole for c in candidates(first.clips[0])] == [False]
    assert [c.whole for c in candidates(ClipSpan(video="a.mp4"))] == [True]


@pytest.mark.parametrize(
    ("value", "text"), [(2, "2"), (2.5, "2.5"), (True, "true"), ("none", "none"), ("null", "null"), ("NA", "NA"), (" a ", "a")]
)
def test_answers_are_text(tmp_path: Path, value: object, text: str) -> None:
    assert texts(tmp_path, {"video": "a.mp4", "question": "q", "answer": value})[0].answer == text


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [(1, ["red", "blue"], "blue"), ("red", ["red", "blue"], "red"), (2, [1, 2, 3], "2"), ("b c", "a|b c", "b c")],
)
def test_choices(tmp_path: Path, answer: object, choices: object, expected: str) -> None:
    (text,) = texts(tmp_path, {"video": "a.mp4", "question": "q", "answer": answer, "choices": choices})
    assert text.answer == expected
    assert expected in text.choices


def test_csv_with_bom_crlf_quoted_commas_and_empty_cells(tmp_path: Path) -> None:
    table = '\ufeffVideo,start,caption,question,answer,extra\r\n-a b.mp4,1,"one, two",,,\r\n\r\n012.mp4,,,q?,NA,\r\n'
    write(tmp_path, {"m.csv": table})
    (split,) = read_manifest(tmp_path / "m.csv")
    assert [(text.id, text.clip.video, text.clip.start_s, text.answer) for text in split.texts] == [
        ("2", "-a b.mp4", 1.0, "one, two"),
        ("4", "012.mp4", None, "NA"),
    ]


def test_a_json_list_and_bom_and_crlf_lines_are_read(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "caption": "x"}
    write(tmp_path, {"m.json": json.dumps([row]), "m.jsonl": "\ufeff" + json.dumps(row) + "\r\n\r\n"})
    assert read_manifest(tmp_path / "m.json") == read_manifest(tmp_path / "m.jsonl")


FAULTY = [
    ({"caption": "x"}, "'video' is missing"),
    ({"video": 7, "caption": "x"}, "'video' is not text: 7"),
    ({"video": "a.mp4"}, "neither 'caption' nor 'question' and 'answer'"),
    ({"video": "a.mp4", "question": "q"}, "'question' without 'answer'"),
    ({"video": "a.mp4", "question": "q", "answer": ""}, "'question' without 'answer'"),
    ({"video": "a.mp4", "answer": "a"}, "'answer' without 'question'"),
    ({"video": "/etc/passwd", "caption": "x"}, "'/etc/passwd' leads out of the video folder; use a path inside it"),
    ({"video": "a/../../b.mp4", "caption": "x"}, "'a/../../b.mp4' leads out of the video folder; use a path inside it"),
    ({"video": "a.mp4", "caption": "x", "start": 5, "end": 5}, "the span ends at 5 s, before or where it starts (5 s)"),
    ({"video": "a.mp4", "caption": "x", "start": -1}, "'start': -1 is not a time of 0 s or more"),
    ({"video": "a.mp4", "caption": "x", "end": "soon"}, "'end': 'soon' is not a time"),
    ('{"video": "a.mp4", "caption": "x", "start": NaN}', "'start': nan is not a time of 0 s or more"),
    ({"video": "a.mp4", "caption": ["x"]}, "'caption' is not text"),
    ({"video": "a.mp4", "question": "q", "answer": "c", "choices": ["a", "b"]}, "the answer 'c' is not one of the choices"),
    ({"video": "a.mp4", "question": "q", "answer": 2, "choices": ["a", "b"]}, "the answer '2' is not one of the choices"),
    ({"video": "a.mp4", "question": "q", "answer": "a", "choices": ["a", "a"]}, "'choices' needs two or more different choices"),
    ({"video": "a.mp4", "caption": "x", "choices": ["a", "b"]}, "'choices' without 'question'"),
    ({"video": "a.mp4", "caption": "x", "split": "../x"}, "'../x' cannot be the name of a split"),
    ('{"video": "a.mp4", "caption": "\\ud800"}', "'caption' is not valid Unicode"),
    ("[1]", "not a JSON object"),
    ('{"video": "a.mp4", "caption": "x", "caption": "y"}', "not valid JSON: key 'caption' is there twice"),
    ({"video": "a.mp4", "caption": "x", "start": "1_0"}, "'start': '1_0' is not a time"),
    (
        {"video": "a.mp4", "caption": "x", "start": "0:99:99"},
        "'start': '0:99:99' is not a time: minutes and seconds after a colon go up to 59",
    ),
]


@pytest.mark.parametrize(("row", "fault"), FAULTY)
def test_a_fault_is_named_with_its_line(tmp_path: Path, row: object, fault: str) -> None:
    assert faults(jsonl(tmp_path, {"video": "ok.mp4", "caption": "x"}, row)) == [f"line 2: {fault}"]


def test_all_faults_come_at_once_and_at_most_twenty_are_shown(tmp_path: Path) -> None:
    lines = faults(jsonl(tmp_path, *["{"] * 3, *[{"video": "../x", "caption": "x"}] * 30))
    assert len(lines) == 21
    assert lines[0].startswith("line 1: not valid JSON")
    assert lines[3] == "line 4: '../x' leads out of the video folder; use a path inside it"
    assert lines[-1] == "and 13 more"


def test_repeated_ids_name_both_lines(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "caption": "x", "id": "a"}
    assert faults(jsonl(tmp_path, row, {"video": "b.mp4", "caption": "y"}, row)) == ["line 3: id 'a' is that of line 1 already"]


UNCLOSED = 'video,caption\na.mp4,"a 12"" nail\nb.mp4,"a cat\nb.mp4,a dog\n'


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (UNCLOSED, "line 2: not valid CSV: text follows the closing quote of a cell (a quote inside a quoted cell is written twice)"),
        ('video,caption\na.mp4,x\nb.mp4,"a cat\nc.mp4,a dog\n', "line 3: not valid CSV: a quote is opened and never closed"),
        (
            'video,caption\na.mp4,"one\nb.mp4,two\nc.mp4,three"\n',
            "line 2: a quoted cell runs on over 'b.mp4,two', which reads like a line of its own: close its quote",
        ),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_line(tmp_path: Path, table: str, fault: str) -> None:
    write(tmp_path, {"q.csv": table})
    assert faults(tmp_path / "q.csv") == [fault]


def test_a_line_break_in_a_caption_is_kept(tmp_path: Path) -> None:
    write(tmp_path, {"m.csv": 'video,caption\na.mp4,"first, then\nsecond, then\nlast"\n'})
    assert read_manifest(tmp_path / "m.csv")[0].texts[0].answer == "first, then\nsecond, then\nlast"


@pytest.mark.parametrize("name", [" blank.mp4", "sub\\a.mp4", "noext", "back\\slash.mp4"])
def test_odd_names_are_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, dict.fromkeys([" blank.mp4", "blank.mp4", "sub/a.mp4", "noext", "back\\slash.mp4"], "x"))
    (split,) = read_manifest(jsonl(tmp_path, {"video": name, "caption": "x"}))
    found = VideoIndex(tmp_path).locate(candidates(split.clips[0]))
    assert found is not None
    assert found.path == tmp_path / ("sub/a.mp4" if "sub" in name else name)


def test_an_absolute_path_into_the_root_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    path = jsonl(tmp_path, {"video": f"{root}/sub/a.mp4", "caption": "x"})
    assert read_manifest(path, root)[0].clips == (ClipSpan(video="sub/a.mp4"),)
    (tmp_path / "link").symlink_to(root)
    assert read_manifest(path, tmp_path / "link")[0].clips == (ClipSpan(video="sub/a.mp4"),)
    for outside in (f"{root}/../b.mp4", f"{root}x/b.mp4", "/etc/passwd"):
        with pytest.raises(DataError, match="leads out of the video folder"):
            read_manifest(jsonl(tmp_path, {"video": outside, "caption": "x"}), root)


def test_splits_by_other_words_are_read_as_train_val_and_test(tmp_path: Path) -> None:
    rows = [{"video": "a.mp4", "caption": "x", "split": word} for word in ("Train", "validation", "TEST", "mine")]
    splits = read_manifest(jsonl(tmp_path, *rows))
    assert [split.name for split in splits] == ["train", "val", "test", "mine"]
    assert splits[1].notes == ("split 'validation' is read as 'val'",)
    assert not splits[3].notes


def test_csv_faults_have_line_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"m.csv": 'video,caption\na.mp4,"two\nlines"\nb.mp4,x,y,z\n,x\n'})
    assert faults(tmp_path / "m.csv") == ["line 4: 4 cells, the header has 2 (quote cells that hold commas)", "line 5: 'video' is missing"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", "", "is empty"),
        ("m.txt", "x", "is not a manifest"),
        ("m.csv", "clip,caption\na,b\n", "line 1: there is no column 'video'"),
        ("m.json", "[{]", "line 1 is not valid JSON"),
        ("m.json", '{"data": [\n{"video": "a.mp4", "caption": "x"}\n]}', "is one JSON object around a list"),
        ("m.csv", "video;caption\na.mp4;x\n", "line 1: the columns are separated by ';'"),
        ("m.csv", "video\tcaption\na.mp4\tx\n", "line 1: the columns are separated by tabs"),
        ("m.csv", "video,caption,Caption\na.mp4,x,y\n", "line 1: column 'caption' is there twice"),
        ("m.csv", "video,caption\n".encode("utf-16-le"), "is not UTF-8 text: it looks like UTF-16"),
        ("m.jsonl", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("gone.jsonl", None, "is missing"),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    if content is not None:
        write(tmp_path, {name: content})
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path / name)
    assert name in caught.value.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
KEYS = ("video", "start", "end", "context", "caption", "question", "answer", "choices", "type", "split", "id", "other")


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), min_size=1, max_size=5))
def test_any_rows_give_good_texts_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = jsonl(tmp_path_factory.mktemp("m"), *rows)
    try:
        splits = read_manifest(path)
    except DataError as error:
        problem = error.message
    else:
        problem = ""
    if problem:
        assert "line" in problem
        return
    ids = [text.id for split in splits for text in split.texts]
    assert len(ids) == len(set(ids)) >= len(rows)
    for split in splits:
        assert {text.clip for text in split.texts} == set(split.clips)
        for text in split.texts:
            assert text.answer
            assert ".." not in text.clip.video.split("/")
            json.dumps(text.to_json(0), ensure_ascii=False).encode()


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".json", ".jsonl"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("m") / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_manifest(path)


@pytest.mark.real
def test_the_real_clips() -> None:
    assert SHARED is not None
    (split,) = read_manifest(SHARED / "clips" / "annotations.jsonl")
    assert (len(split.clips), len(split.texts)) == (19, 38)
    assert sum(text.question == CAPTION_PROMPT for text in split.texts) == 19
    question = next(text for text in split.texts if text.clip.video == "awesome movie.mov" and text.question != CAPTION_PROMPT)
    assert question.answer == "paper"
