"""FLOPs of a forward pass, counted by torch on a model without memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from mirasol_cli.model.mirasol import Mirasol

Result = TypeVar("Result")


@torch.no_grad()
def forward_flops(
    model: Mirasol, *, video: bool = True, audio: bool = True, questions: int = 1, tokens: int = 64, targets: int = 8
) -> dict[str, int]:
    """FLOPs of one clip by part (`Mirasol.parts`): matrix products, a multiplication and its addition being two.

    Video and audio: False where the recipe leaves it out. Text: `questions` rows of `tokens` tokens, `targets` of which carry loss.
    A training step takes about three times as many. Masked attention and dropped modalities count in full, as they are computed.
    """
    geometry = model.geometry
    with torch.device("meta"):
        model = Mirasol(model.config, geometry, model.vocab_size, model.losses).requires_grad_(False)
        shown = tuple(
            torch.empty(1, geometry.chunks, count, tube.numbers_per_token, dtype=torch.uint8)
            for count, tube in zip(geometry.tube_tokens, geometry.tubes, strict=True)
        )
        heard = torch.empty(1, geometry.chunks, geometry.audio.n_mels, geometry.audio.columns)
        text_BQL = torch.zeros(1, questions, tokens, dtype=torch.int64)
    flops: dict[str, int] = {}

    def counted(part: str, run: Callable[[], Result]) -> Result:
        with FlopCounterMode(display=False) as counter:
            result = run()
        flops[part] = flops.get(part, 0) + counter.get_total_flops()
        return result

    encoders, encoded = model.parts()["encoder"], []
    if video:
        x = counted("video_tokens", lambda: model.video_tokens(shown))
        encoded.append(counted("encoder", lambda: encoders[0](x)))
    if audio:
        y = counted("audio_tokens", lambda: model.audio_tokens(heard))
        encoded.append(counted("encoder", lambda: encoders[-1](y)))
    combined, memory = counted("combiner", lambda: model.combiner(torch.cat(encoded, dim=2)))
    latents = counted("latent", lambda: model.latent(combined))
    counted("objectives", lambda: [predictor(latents[:, :-1]) for predictor in model.objectives.values()])
    carried = memory if isinstance(memory, torch.Tensor) and model.config.text.sees_memory else None
    seen = latents if model.config.text.sees == "all" else latents[:, -1:] if model.config.text.sees == "last" else latents[:, :0]
    text_kv = counted("text", lambda: model.text.project_kv(seen.flatten(1, 2), None, carried))
    hidden = counted("text", lambda: model.text.hidden(text_BQL, None, text_kv))
    counted("text", lambda: model.text.logits(hidden[:, :, :targets]))
    return flops
