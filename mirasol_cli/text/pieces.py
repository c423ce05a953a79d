"""The two kinds of tokenizer files, behind one face: SentencePiece models, and tokenizer.json of the `tokenizers` package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mirasol_cli.errors import DataError, EnvironmentProblem

COPY_AGAIN = "copy the file again from where it came"


class Pieces(Protocol):
    """What `Vocabulary` needs of a file. `gap` is what joins two texts that are encoded one by one: nothing, where every text begins
    with a space of its own (SentencePiece), else a space."""

    size: int
    eos: int
    bos: int | None
    gap: str

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class SentencePieces:
    """A SentencePiece model. Raises DataError where it is none, or has no end token."""

    gap = ""

    def __init__(self, content: bytes, source: str):
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not content or not self._processor.LoadFromSerializedProto(content):
                raise RuntimeError("no pieces")
        except RuntimeError:
            raise DataError(f"'{source}' is damaged or no SentencePiece model", COPY_AGAIN) from None
        if self._processor.eos_id() < 0:
            raise DataError(f"'{source}' has no end token, so that no answer could end", "use a SentencePiece model with an eos piece")
        self.eos: int = self._processor.eos_id()
        self.bos: int | None = self._processor.bos_id() if self._processor.bos_id() >= 0 else None
        self.size: int = self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.DecodeIds(ids)


class JsonPieces:
    """A tokenizer.json. The start token is the one that it puts before a text itself, if any; the end token comes from the files
    beside it.

    Args:
        ends: the end token's text or id, as those files say; the first that is known counts.

    Raises:
        DataError: it is damaged, or none of `ends` is in it.
        EnvironmentProblem: the package `tokenizers` is not installed.
    """

    def __init__(self, content: bytes, source: str, ends: Sequence[str | int]):
        try:
            import tokenizers
        except ImportError:
            raise EnvironmentProblem(f"'{source}' needs the package tokenizers", "pip install 'mirasol[hub]'") from None
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(content.decode())
            ids = self._tokenizer.get_vocab(with_added_tokens=True)
        except Exception as error:  # the package raises no narrower kind
            raise DataError(f"'{source}' is damaged or no tokenizer.json: {error}", COPY_AGAIN) from None
        if not ids:
            raise DataError(f"'{source}' has no pieces", COPY_AGAIN)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a question that holds the text of a control token makes no control token
        self.size = max(ids.values()) + 1
        known = [ids.get(end, -1) if isinstance(end, str) else end for end in ends]
        self.eos = next((end for end in known if 0 <= end < self.size), -1)
        if self.eos < 0:
            named = f": {', '.join(map(repr, ends))} is not in it" if ends else ""
            raise DataError(
                f"'{source}' has no end token, so that no answer could end{named}", "name eos_token in the tokenizer_config.json beside it"
            )
        self.eos_text = str(self._tokenizer.id_to_token(self.eos))
        bare, whole = self.encode("a"), self._tokenizer.encode("a").ids
        self.bos: int | None = whole[0] if len(whole) > len(bare) and whole[1 : len(bare) + 1] == bare else None
        self.gap = "" if self._tokenizer.decode(bare + bare) != "aa" else " "

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.removeprefix(self.gap)
