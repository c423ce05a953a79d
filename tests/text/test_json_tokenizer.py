"""tokenizer.json of several kinds, made here, against transformers; the tokens that texts begin and end with; damaged files."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirasol_cli.errors import DataError, EnvironmentProblem
from mirasol_cli.text.prompt import encode_prompt, encode_target
from mirasol_cli.text.tokenizer import StreamDecoder, Vocabulary, tokenizer_in
from tests.checkpoints.pretrained import imported_transformers

tokenizers = pytest.importorskip("tokenizers")

WORDS = {
    "Latin": "context: question: answer: what is playing? the red guitar plays last; it's a café, naïve façade & 3,141 drums -- déjà vu!",
    "Greek": "τι παίζει η κόκκινη κιθάρα; τα τύμπανα σταματούν στο τέλος",
    "Cyrillic": "что играет? красная гитара звучит последней, а барабаны молчат",
    "Han": "什么在播放？红色的吉他最后演奏。鼓声停止了",
    "Kana": "何が鳴っていますか？赤いギターが最後に演奏されます",
    "Hangul": "무엇이 연주되고 있나요? 빨간 기타가 마지막에 연주됩니다",
    "Arabic": "ما الذي يعزف؟ الجيتار الأحمر يعزف في النهاية",
    "Hebrew": "מה מנגן? הגיטרה האדומה מנגנת אחרונה",
    "Devanagari": "क्या बज रहा है? लाल गिटार अंत में बजता है",
    "Thai": "กำลังเล่นอะไรอยู่ กีตาร์สีแดงเล่นเป็นอันสุดท้าย",
    "other": "😀🎸 👩‍👩‍👧 ﬁ ① e\u0301 \t two  spaces   x = f(y); 100% {json: [1, 2]} \u00a0 ㎏",
}
# Of Qwen 2's tokenizer.json; Llama 3's takes up to three digits at once.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip


KINDS = ("llama-2", "llama-3", "qwen", "smollm", "unigram")


def thousand_texts() -> list[str]:
    """Runs of characters of every script, alone and mixed."""
    draw = random.Random(0)
    texts = []
    for number in range(1000):
        scripts = list(WORDS.values()) if number % 2 else [draw.choice(list(WORDS.values()))]
        parts = []
        for _ in range(draw.randint(1, 6)):
            line = draw.choice(scripts)
            first = draw.randrange(len(line))
            parts.append(line[first : first + draw.randint(1, 25)])
        texts.append(draw.choice(["", " ", "\n"]).join(parts))
    return texts


def trained(kind: str) -> Any:
    """A small tokenizer in the layout of Llama 3's (a start token before each text), Qwen's and SmolLM's (none), Llama 2's and Mistral's
    (what is rare in bytes), or T5's (Unigram)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    specials = ["<|begin|>", "<|end|>"]
    if kind == "llama-2":
        return llama_2(specials)
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=["<unk>", *specials], unk_token="<unk>", show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        digits = QWEN_SPLIT if kind == "qwen" else QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")
        tokenizer.normalizer = normalizers.NFC() if kind == "qwen" else None
        split = [pre_tokenizers.Split(Regex(digits), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        if kind == "smollm":
            split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    tokenizer.train_from_iterator(list(WORDS.values()) * 3, trainer)
    if kind == "llama-3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        )
    return tokenizer


def llama_2(specials: list[str]) -> Any:
    """Byte-pair pieces of whole texts, whose spaces are marks, with 256 pieces for the bytes of what is in none."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *specials], limit_alphabet=200, show_progress=False)
    tokenizer.train_from_iterator([" ".join(line.split()[:6]) for line in WORDS.values()] * 3, trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    content["model"] |= {"byte_fallback": True, "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    begin = ("<|begin|>", tokenizer.token_to_id("<|begin|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[begin])
    return tokenizer


def save(folder: Path, kind: str, settings: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    trained(kind).save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"} if settings is None else settings
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    with imported_transformers() as transformers:
        yield transformers


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_texts_of_many_scripts_are_encoded_as_by_transformers(hf: Any, tmp_path: Path, kind: str) -> None:
    vocabulary, theirs = Vocabulary.from_file(save(tmp_path, kind)), hf.AutoTokenizer.from_pretrained(tmp_path)
    texts = thousand_texts()
    assert len(set(texts)) > 900
    for text in texts:
        ids = vocabulary.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        if not text.startswith(" "):  # a space at the start is the one that stands between two texts
            assert vocabulary.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert vocabulary.size == len(theirs)
    assert vocabulary.eos == theirs.eos_token_id


@pytest.mark.parametrize(("kind", "bos"), [("llama-2", "<|begin|>"), ("llama-3", "<|begin|>"), ("qwen", None), ("unigram", None)])
def test_a_text_begins_as_the_tokenizer_itself_begins_it(tmp_path: Path, kind: str, bos: str | None) -> None:
    vocabulary = Vocabulary.from_file(save(tmp_path, kind))
    assert vocabulary.bos == (None if bos is None else trained(kind).token_to_id(bos))


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_answer_are_words_apart(tmp_path: Path, kind: str) -> None:
    class Limits:
        max_context, max_question, max_answer = 64, 64, 16

    vocabulary = Vocabulary.from_file(save(tmp_path, kind))
    prompt = encode_prompt(vocabulary, "what is playing?", "the red guitar", Limits()).ids
    answer = encode_target(vocabulary, "guitar", Limits()).ids
    assert vocabulary.decode(prompt + answer) == "context: the red guitar question: what is playing? answer: guitar"
    assert vocabulary.decode(answer) == "guitar"
    assert answer[-1] == vocabulary.eos
    assert (prompt[0] == vocabulary.bos) == kind.startswith("llama")
    stream = StreamDecoder(vocabulary)
    assert "".join(stream.push(token) for token in answer) + stream.finish() == "guitar"


def test_text_that_looks_like_a_control_token_is_text(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(save(tmp_path, "qwen"))
    ids = vocabulary.encode("is it <|end|> now?")
    assert vocabulary.eos not in ids
    assert vocabulary.decode(ids) == "is it <|end|> now?"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "<|end|>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "<|end|>", "lstrip": False}}),
        ("special_tokens_map.json", {"eos_token": "<|end|>"}),
        ("config.json", {"eos_token_id": 1}),
        ("config.json", {"eos_token_id": [1, 0]}),
    ],
)
def test_the_end_token_is_found_where_models_name_it(tmp_path: Path, name: str, content: dict) -> None:
    path = save(tmp_path, "qwen", settings={})
    (tmp_path / name).write_text(json.dumps(content))
    assert Vocabulary.from_file(path).eos == trained("qwen").token_to_id("<|end|>") == 1


def test_what_a_checkpoint_keeps_is_enough(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(save(tmp_path / "theirs", "llama-3"))
    (tmp_path / "ours").mkdir()
    for name, content in vocabulary.files.items():
        (tmp_path / "ours" / name).write_bytes(content)
    path = tokenizer_in(tmp_path / "ours")
    assert path is not None
    again = Vocabulary.from_file(path)
    assert (again.eos, again.bos, again.size) == (vocabulary.eos, vocabulary.bos, vocabulary.size)
    assert again.encode("什么 is 3?") == vocabulary.encode("什么 is 3?")


@pytest.mark.parametrize("settings", [{}, {"eos_token": None}, {"eos_token": "</s>"}])
def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(DataError, match="has no end token, so that no answer could end") as caught:
        Vocabulary.from_file(save(tmp_path, "qwen", settings))
    assert "tokenizer_config.json" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"{}", b'{"model": 3}', b'{"version": "1.0", "model"'])
def test_a_damaged_tokenizer_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, "qwen")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json' is damaged"):
        Vocabulary.from_file(path)


def test_without_the_package_its_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "qwen")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentProblem, match=r"tokenizer\.json' needs the package tokenizers") as caught:
        Vocabulary.from_file(path)
    assert caught.value.hint == "pip install 'mirasol[hub]'"
