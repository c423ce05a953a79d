"""What the model is trained for: one class per loss, and all there is to know about it.

A class gives the loss its name, which is its weight's key in a recipe (`loss: {NAME: weight}`), the parameters that only
this loss needs, how many items of a batch it is a mean over, and its sum over them. Recipes, training, logs and checkpoints
take all of this from here: to add a loss, add a class above `OBJECTIVES`.

Only annotations name torch here, since recipes are read without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirasol_cli.geometry import ClipGeometry
    from mirasol_cli.model.batch import MediaBatch, TextBatch, TrainingInputs
    from mirasol_cli.model.config import ModelConfig
    from mirasol_cli.model.losses import LossPart
    from mirasol_cli.model.mirasol import Encoded, Mirasol


class Objective:
    """A loss. Subclasses need no instance state: parameters belong to the model, under `objectives.NAME`."""

    name: str
    weight = 0.0  # where a recipe says nothing; with a weight of zero a loss is neither built nor computed
    help: str
    reads_text = False  # whether it runs the text decoder, which is frozen where no loss does

    def build(self, config: ModelConfig, geometry: ClipGeometry) -> nn.Module | None:
        """The parameters that only this loss needs."""
        return None

    def count(self, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs, geometry: ClipGeometry) -> Tensor:
        """Items in this batch, a number []. Training sums it over the global batch before the first forward pass."""
        raise NotImplementedError

    def forward(self, model: Mirasol, encoded: Encoded, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs) -> LossPart:
        """The loss summed over those items, float32 [], and their count; its gradient reaches all that `build` made."""
        raise NotImplementedError


class Text(Objective):
    """Cross-entropy in nats of the target tokens, given what stands before them and the clip (Mirasol3B, arXiv 2311.05698, section 3.4)."""

    name, weight, help = "text", 10.0, "cross-entropy of the target tokens"
    reads_text = True

    def count(self, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs, geometry: ClipGeometry) -> Tensor:
        assert text is not None
        tokens_BQ = (text.target_BQL & text.valid_BQL)[:, :, 1:].sum(-1)
        return tokens_BQ.sum() if text.weight_BQ is None else (tokens_BQ * text.weight_BQ).sum()

    def forward(self, model: Mirasol, encoded: Encoded, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs) -> LossPart:
        from mirasol_cli.model.losses import LossPart

        assert text is not None
        memory = model.text_kv(encoded, extra.memory_only_B)
        target_BQL = text.target_BQL & text.valid_BQL
        return LossPart(*model.text.target_loss(text.tokens_BQL, text.valid_BQL, target_BQL, memory, weight_BQ=text.weight_BQ))


class Latent(Objective):
    """The latent of a chunk predicts the Combiner output of the next one (Mirasol3B section 3.2); pairs of consecutive chunks."""

    name, weight, help = "latent", 1.0, "next-chunk latent prediction"

    def build(self, config: ModelConfig, geometry: ClipGeometry) -> nn.Module:
        from mirasol_cli.model.latent import NextChunk

        return NextChunk(config.latent.width, config.combiner.width)

    def count(self, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs, geometry: ClipGeometry) -> Tensor:
        return consecutive(media.present_BT).sum()

    def forward(self, model: Mirasol, encoded: Encoded, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs) -> LossPart:
        from mirasol_cli.model.losses import latent_loss

        latents = encoded.latents_BTMD
        if extra.masked_BT is not None:
            # A second pass of the latents: nothing is hidden from the text and the other losses.
            latents = model.latent(encoded.combined_BTMD, extra.masked_BT, media.chunk_valid_BT)
        predicted = model.objectives[self.name](latents[:, :-1])
        return latent_loss(predicted, encoded.combined_BTMD, encoded.latents_BTMD, media.present_BT)


class Video(Objective):
    """The latents of a chunk rebuild the next one's thumbnails (Mirasol3B section 3.2); pairs of chunks whose second shows anything.

    OURS: the target is small pictures. Tubes are sparse, so that it can't be their own pixels.
    """

    name, weight, help = "video", 1.0, "reconstruction of the next chunk's thumbnails"

    def build(self, config: ModelConfig, geometry: ClipGeometry) -> nn.Module:
        from mirasol_cli.model.reconstruction import THUMBNAIL_NUMBERS, THUMBNAIL_QUERIES, PatchPredictor

        return PatchPredictor(config.reconstruction, config.latent.width, THUMBNAIL_QUERIES, THUMBNAIL_NUMBERS)

    def count(self, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs, geometry: ClipGeometry) -> Tensor:
        return self._pairs(media).sum()

    def forward(self, model: Mirasol, encoded: Encoded, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs) -> LossPart:
        from mirasol_cli.model.losses import masked_error
        from mirasol_cli.model.reconstruction import thumbnail_patches

        predicted = model.objectives[self.name](encoded.latents_BTMD[:, :-1])
        return masked_error(predicted, thumbnail_patches(media.thumbnails[:, 1:]), self._pairs(media))

    @staticmethod
    def _pairs(media: MediaBatch) -> Tensor:
        valid_BT = media.chunks_BT
        seen_BT = valid_BT if media.thumbnail_valid_BT is None else media.thumbnail_valid_BT
        return consecutive(valid_BT) & seen_BT[:, 1:]


class Audio(Objective):
    """The latents of a chunk rebuild the next one's log-mel spectrogram; patches that hold audio, whatever training hid of them."""

    name, help = "audio", "reconstruction of the next chunk's spectrogram"

    def build(self, config: ModelConfig, geometry: ClipGeometry) -> nn.Module:
        from mirasol_cli.model.reconstruction import PatchPredictor

        return PatchPredictor(config.reconstruction, config.latent.width, geometry.audio_tokens, geometry.audio.patch_numbers)

    def count(self, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs, geometry: ClipGeometry) -> Tensor:
        return self._patches(media, extra, geometry.audio_tokens).sum()

    def forward(self, model: Mirasol, encoded: Encoded, media: MediaBatch, text: TextBatch | None, extra: TrainingInputs) -> LossPart:
        from mirasol_cli.model.losses import masked_error
        from mirasol_cli.model.tokens import spectrogram_patches

        mel_BTZS = media.mel_BTZS if extra.whole_mel_BTZS is None else extra.whole_mel_BTZS
        predicted = model.objectives[self.name](encoded.latents_BTMD[:, :-1])
        target = predicted if mel_BTZS is None else spectrogram_patches(mel_BTZS[:, 1:], model.geometry.audio)
        return masked_error(predicted, target, self._patches(media, extra, model.geometry.audio_tokens))

    @staticmethod
    def _patches(media: MediaBatch, extra: TrainingInputs, tokens: int) -> Tensor:
        valid_BT = media.chunks_BT if media.mel_BTZS is not None else media.chunks_BT & False
        heard_BTN = media.audio_valid_BTN if extra.whole_audio_valid_BTN is None else extra.whole_audio_valid_BTN
        if heard_BTN is None:
            heard_BTN = valid_BT[..., None].expand(*valid_BT.shape, tokens)
        return consecutive(valid_BT)[..., None] & heard_BTN[:, 1:]


def consecutive(present_BT: Tensor) -> Tensor:
    """bool [B, T - 1]: chunk t and chunk t + 1 are both real."""
    return present_BT[:, :-1] & present_BT[:, 1:]


OBJECTIVES = {kind.name: kind() for kind in Objective.__subclasses__()}
