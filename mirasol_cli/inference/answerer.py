"""Answers questions with a loaded model: media are encoded once and reused for any number of questions."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mirasol_cli.batches.collate import media_batch, text_batch
from mirasol_cli.config.schema import EvalRecipe
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.inference import decoding
from mirasol_cli.runtime.device import computes_in_bf16
from mirasol_cli.text.prompt import Encoded, encode_prompt, encode_target
from mirasol_cli.text.tokenizer import Vocabulary

if TYPE_CHECKING:
    from mirasol_cli.model.mirasol import Mirasol, StreamState
    from mirasol_cli.model.text_decoder import TextKV


@dataclass(frozen=True)
class Question:
    """What is asked about a clip. `id` only seeds sampling."""

    text: str
    context: str = ""
    id: str = ""


@dataclass(frozen=True)
class Answer:
    text: str
    logprob: float  # natural log-probability of the answer and its end


class Answerer:
    """Model, vocabulary and decoding settings. Puts the model into evaluation mode on `device`.

    Answers depend on the clip and the question alone, not on what else is in the batch.
    """

    def __init__(
        self, model: Mirasol, vocabulary: Vocabulary, settings: EvalRecipe, device: torch.device | str = "cpu",
        *, video: bool = True, audio: bool = True, precision: str = "auto",
    ):  # fmt: skip
        self.model, self.vocabulary, self.settings = model.to(device).eval(), vocabulary, settings
        self.modalities = {"video": video, "audio": audio}
        self.device = torch.device(device)
        self._autocast = computes_in_bf16(precision, self.device)

    @property
    def geometry(self) -> ClipGeometry:
        return self.model.geometry

    def precision(self) -> AbstractContextManager:
        """bf16 where asked for (`auto`: on GPUs), else float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self._autocast else nullcontext()

    @torch.inference_mode()
    def encode(self, samples: Sequence[dict[str, Any]], cut: str | None = None) -> TextKV:
        """The clips' keys and values for the text decoder; `samples` have the fields of a shard, `cut` is one of `CUTS`."""
        media = media_batch(list(samples), self.geometry, **self.modalities).to(self.device)
        with self.precision():
            return self.model.text_kv(self.model.encode(media, cut=cut), cut=cut)

    @torch.inference_mode()
    def encode_further(self, sample: dict[str, Any], state: StreamState | None) -> tuple[TextKV, StreamState]:
        """The next piece of a long video: keys and values of its latents, which know of the earlier pieces by `state`.

        The latents look back on as many chunks as the model was made for, so that their cache stays as small."""
        chunks, window = self.geometry.chunks, self.model.config.latent.window
        media = media_batch([sample], self.geometry, **self.modalities).to(self.device)
        with self.precision():
            encoded, state = self.model.encode_stream(media, state, window=min(window, chunks) if window else chunks)
            return self.model.text_kv(encoded), state

    def answers(self, text_kv: TextKV | None, questions: Sequence[Sequence[Question]]) -> list[list[Answer]]:
        """One answer per question, `questions[b]` being those about clip b. The same question about a clip is decoded once."""
        distinct = [list(dict.fromkeys((q.text, q.context) for q in row)) for row in questions]
        prompts = [[self.prompt(Question(text, context)).ids for text, context in row] for row in distinct]
        ids = [{(q.text, q.context): q.id for q in reversed(row)} for row in questions]  # of a clip's equal questions the first one's
        seeds = [[_seed(self.settings.seed, id_of[key]) for key in row] for row, id_of in zip(distinct, ids, strict=True)]
        decoded = self._decode(text_kv, prompts, seeds)
        result = []
        for row, keys, found in zip(questions, distinct, decoded, strict=True):
            by_key = {key: Answer(self.vocabulary.decode(one.ids), one.logprob) for key, one in zip(keys, found, strict=True)}
            result.append([by_key[q.text, q.context] for q in row])
        return result

    def _decode(self, text_kv: TextKV | None, prompts: decoding.Prompts, seeds: list[list[int]]) -> list[list[decoding.Decoded]]:
        decoder, eos, settings = self.model.text, self.vocabulary.eos, self.settings
        with self.precision():
            if settings.decode == "greedy":
                return decoding.greedy(decoder, text_kv, prompts, eos, settings.max_tokens)
            if settings.decode == "sample":
                return decoding.sample(
                    decoder, text_kv, prompts, eos, settings.max_tokens, seeds=seeds, temperature=settings.temperature, top_p=settings.top_p
                )
            found = decoding.beam(decoder, text_kv, prompts, eos, settings.max_tokens, beams=settings.beams)
            return [[best[0] for best in row] for row in found]

    def stream(self, text_kv: TextKV | None, question: Question) -> Iterator[decoding.Decoded]:
        """Greedy decoding token by token, about the one clip of `text_kv`."""
        prompt = self.prompt(question).ids
        with self.precision():
            yield from decoding.stream_greedy(self.model.text, text_kv, prompt, self.vocabulary.eos, self.settings.max_tokens)

    def likelihoods(
        self, text_kv: TextKV | None, questions: Sequence[Sequence[Question]], candidates: Sequence[Sequence[Sequence[str]]],
        *, per_token: bool = False,
    ) -> list[list[list[float]]]:  # fmt: skip
        """Log-likelihood of every candidate answer (its end included) to every question; `per_token` divides by its tokens."""
        prompts = [[self.prompt(q).ids for q in row] for row in questions]
        encoded: dict[int, list[list[int]]] = {}  # a list that several questions share is encoded, and later scored, as one
        for texts in (texts for row in candidates for texts in row):
            encoded.setdefault(id(texts), [self.vocabulary.encode(text.strip(), follows=True) for text in texts])  # as answers are trained
        tokens = [[encoded[id(texts)] for texts in row] for row in candidates]
        with self.precision():
            scores = decoding.score_candidates(self.model.text, text_kv, prompts, tokens, self.vocabulary.eos)
        if per_token:
            return [
                [[value / (len(ids) + 1) for value, ids in zip(values, texts, strict=True)] for values, texts in zip(*rows, strict=True)]
                for rows in zip(scores, tokens, strict=True)
            ]
        return scores

    @torch.inference_mode()
    def loss(self, text_kv: TextKV | None, texts: Sequence[Sequence[tuple[Question, str]]]) -> tuple[float, int]:
        """Cross-entropy of the given answers, `texts[b]` being (question, answer) about clip b, with teacher forcing as in training:
        (sum in nats, tokens)."""
        limits = self.model.config.text
        rows = [
            [(self.prompt(question).ids, encode_target(self.vocabulary, answer, limits).ids) for question, answer in row] for row in texts
        ]
        batch = text_batch(rows).to(self.device)
        with self.precision():
            total, count = self.model.text.target_loss(batch.tokens_BQL, batch.valid_BQL, batch.target_BQL & batch.valid_BQL, text_kv)
        return float(total), int(count)

    def prompt(self, question: Question) -> Encoded:
        """Token ids of context and question, and how many tokens had to be left out."""
        return encode_prompt(self.vocabulary, question.text, question.context, self.model.config.text)


def _seed(seed: int, question_id: str) -> int:
    return zlib.crc32(f"{seed}/{question_id}".encode("utf-8", "surrogatepass"))
