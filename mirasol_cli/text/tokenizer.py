"""Text to token ids and back: SentencePiece models, our own or those of public checkpoints, and their tokenizer.json."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mirasol_cli.errors import DataError, UsageError
from mirasol_cli.files import read_json
from mirasol_cli.text.pieces import JsonPieces, Pieces, SentencePieces

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
"""Names of the two kinds in a model folder or checkpoint: SentencePiece, and that of the `tokenizers` package."""
JSON_SETTINGS = "tokenizer_config.json"
"""Stands beside a tokenizer.json and names its end token."""

BYTES = 256  # pieces of the byte fallback
MOST_LINES = 2_000_000
"""More lines than this are sampled: SentencePiece holds all of them in memory."""
LONGEST_LINE = 200_000
"""Characters; longer lines are cut, since SentencePiece leaves out what exceeds its own limit."""


def train_vocabulary(lines: Iterable[str], size: int, *, most_lines: int = MOST_LINES) -> bytes:
    """A SentencePiece model of at most `size` pieces, as the content of its file.

    OURS: byte-pair pieces in Llama's layout (unk 0, bos 1, eos 2, 256 byte pieces, single digits) without any
    normalisation of the text, so that every string comes back as it went in: case, accents, emoji, double spaces.
    (Llama's and T5's files bring their own rules; T5's join double spaces.) Equal lines in equal order give equal bytes.

    Raises:
        DataError: there is no text.
        UsageError: `size` has no room for the characters of the text.
    """
    import sentencepiece

    texts = _sample((_valid(line[:LONGEST_LINE]) for line in lines if line.strip()), most_lines)
    if not texts:
        raise DataError("no text to train a vocabulary on", "give texts with questions or captions, or set init.tokenizer")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,  # a small text gives fewer pieces
            byte_fallback=True,
            character_coverage=0.9995,  # what is rarer is spelt in bytes
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=LONGEST_LINE * 4,  # bytes
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        characters = len(set("".join(texts)))
        raise UsageError(
            f"a vocabulary of {size} pieces has no room for {BYTES} bytes, 3 control pieces and up to {characters} characters: {error}",
            f"set init.vocab_size to {BYTES + 4 + characters} or more",
        ) from None
    return model.getvalue()


class Vocabulary:
    """A SentencePiece model or a tokenizer.json.

    Attributes:
        model_bytes: the content of the file.
        files: what a checkpoint keeps of it, by name.
        size: V, from the file.
        eos: the end token's id.
        bos: the start token's id, or None where texts have none (T5, Qwen).

    Args:
        model_bytes: content of the file.
        source: names the file in errors.
        ends: tokenizer.json only: texts or ids that the files beside it give for the end token.

    Raises:
        DataError: neither of the two, or one without an end token.
        EnvironmentProblem: a tokenizer.json, and the package `tokenizers` is not installed.
    """

    def __init__(self, model_bytes: bytes, source: str = "tokenizer.model", ends: Sequence[str | int] = ()):
        self.model_bytes = model_bytes
        is_json = model_bytes.lstrip()[:1] == b"{"
        self._pieces: Pieces
        self.files = {TOKENIZER_FILES[is_json]: model_bytes}
        if is_json:
            self._pieces = pieces = JsonPieces(model_bytes, source, ends)
            self.files[JSON_SETTINGS] = (json.dumps({"eos_token": pieces.eos_text}) + "\n").encode()
        else:
            self._pieces = SentencePieces(model_bytes, source)
        self.eos, self.bos, self.size = self._pieces.eos, self._pieces.bos, self._pieces.size

    @staticmethod
    def from_file(path: Path) -> Vocabulary:
        """Raises DataError if the file is missing, unreadable or damaged."""
        try:
            return Vocabulary(path.read_bytes(), str(path), _ends(path.parent) if path.suffix == ".json" else ())
        except FileNotFoundError:
            raise DataError(f"the vocabulary '{path}' is missing") from None
        except OSError as error:
            raise DataError(f"the vocabulary '{path}' cannot be read: {error.strerror}") from None

    def encode(self, text: str, *, follows: bool = False) -> list[int]:
        """Ids without start and end. Half a surrogate pair, which no UTF-8 can hold, counts as U+FFFD.

        Args:
            follows: the text comes after another, apart from it by a space; most tokenizers put that there themselves.
        """
        return self._pieces.encode((self._pieces.gap if follows and text else "") + _valid(text))

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; control pieces add nothing, incomplete characters become U+FFFD.

        Equals what was encoded for every string if `train_vocabulary` made the model, but for U+2581 (SentencePiece's
        own mark for a space), which comes back as a space.
        """
        return self._pieces.decode(ids)


def tokenizer_in(folder: Path) -> Path | None:
    """The tokenizer file of a model folder or checkpoint; SentencePiece goes before tokenizer.json."""
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def _ends(folder: Path) -> list[str | int]:
    """The end token's texts and ids, as the files beside a tokenizer.json give them, the most telling first."""
    found: list[Any] = []
    for name, key in ((JSON_SETTINGS, "eos_token"), ("special_tokens_map.json", "eos_token"), ("config.json", "eos_token_id")):
        if (folder / name).is_file():
            content = read_json(folder / name)
            value = content.get(key) if isinstance(content, dict) else None
            value = value.get("content") if isinstance(value, dict) else value
            found += value if isinstance(value, list) else [value]
    return [value for value in found if isinstance(value, (str, int)) and not isinstance(value, bool)]


def _valid(text: str) -> str:
    """The text with halves of surrogate pairs, as JSON escapes may hold them, joined or replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _sample(lines: Iterable[str], most: int) -> list[str]:
    """All lines, or `most` of them drawn evenly; the same draw every time."""
    draws, kept = random.Random(0), []
    for number, line in enumerate(lines):
        if number < most:
            kept.append(line)
        elif (place := draws.randrange(number + 1)) < most:
            kept[place] = line
    return kept


class StreamDecoder:
    """Text that grows token by token, whole characters only. Where a token changes what was shown, the text begins again on a new line."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """The text that this token completes; "" while a character lacks bytes."""
        self._ids.append(token)
        # The whole prefix is decoded again, since a piece's spaces depend on what precedes it.
        return self._show(self._vocabulary.decode(self._ids).rstrip("\ufffd"))

    def finish(self) -> str:
        """What was held back."""
        return self._show(self._vocabulary.decode(self._ids))

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :] if text.startswith(self._shown) else f"\n{text}"
        self._shown = text
        return new
