"""Sizes of the model: frozen dataclasses, presets, and nothing else (no torch here, so that the CLI starts fast).

Sources, cited by section in this folder: Mirasol3B (arXiv 2311.05698), TubeViT (2212.03229), Token Turing Machines (2211.09119).
OURS marks a choice of this project where they are silent: it is no claim about the paper, and may be changed.

The legend of shapes is in `mirasol_cli.geometry`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirasol_cli.fields import FieldError, check_fields, checked_field
from mirasol_cli.geometry import ClipGeometry


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """A pre-norm ViT over tubes or spectrogram patches (TubeViT Table 11)."""

    width: int = checked_field(768, "D of the encoders", minimum=6)
    layers: int = checked_field(12, minimum=1)
    heads: int = checked_field(12, minimum=1)
    mlp_dim: int = checked_field(3072, "hidden width of the feed-forward part", minimum=1)
    activation: str = checked_field("gelu", "of the feed-forward part", choices=("gelu", "gelu_tanh", "quick_gelu"))
    input_norm: bool = checked_field(False, "a norm before the first layer (CLIP)")
    norm_eps: float = checked_field(1e-6, above=0)
    dropout: float = checked_field(0.0, minimum=0, maximum=0.9)
    drop_path: float = checked_field(0.0, "stochastic depth, growing linearly to this at the last layer", minimum=0, maximum=0.9)

    def __post_init__(self) -> None:
        check_fields(self)
        _divides(self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(TrunkConfig):
    """The trunk of video and audio; or of both, one each, where they do not share it."""

    share: bool = checked_field(True, "one trunk for audio and video; false as soon as one of them has sizes of its own")


@dataclass(frozen=True, kw_only=True)
class CombinerConfig:
    """What turns a chunk's tokens into M (Mirasol3B section 3.3; TTM: Token Turing Machines)."""

    kind: str = checked_field("transformer", choices=("transformer", "ttm", "perceiver", "mean", "none"))
    context: str = checked_field("chunk", "transformer only: see this chunk, or all chunks so far", choices=("chunk", "history"))
    output_tokens: str = checked_field(
        "learned", "transformer only: M learned tokens behind the chunk's own, or its last M valid ones", choices=("learned", "last")
    )
    num_outputs: int = checked_field(32, "M, tokens that leave each chunk (also TTM's process size)", minimum=1)
    width: int = checked_field(768, minimum=6)
    layers: int = checked_field(4, minimum=1)
    heads: int = checked_field(12, minimum=1)
    mlp_dim: int = checked_field(3072, minimum=1)
    memory_tokens: int = checked_field(64, "ttm: memory tokens", minimum=1)
    write: str = checked_field(
        "tokenlearner", "ttm: how memory is written; gated is OURS, for long video", choices=("tokenlearner", "gated")
    )
    initial_memory: str = checked_field("learned", "ttm: the original starts from zeros", choices=("learned", "zero"))
    positions: bool = checked_field(True, "ttm: learned positions on [memory; input], which tell memory from input")
    dropout: float = checked_field(0.0, minimum=0, maximum=0.9)

    def __post_init__(self) -> None:
        check_fields(self)
        _divides(self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The block-causal Transformer over chunks."""

    width: int = checked_field(768, minimum=6)
    layers: int = checked_field(14, "0 leaves the autoregression out (an ablation)", minimum=0)
    heads: int = checked_field(12, minimum=1)
    mlp_dim: int = checked_field(3072, minimum=1)
    window: int = checked_field(0, "attention window in chunks, this one included; 0 = all", minimum=0)
    dropout: float = checked_field(0.0, minimum=0, maximum=0.9)

    def __post_init__(self) -> None:
        check_fields(self)
        _divides(self.width, self.heads)
        if (self.width // self.heads) % 2:
            raise FieldError("heads", f"width {self.width} / {self.heads} heads is odd; rotary positions need an even head width")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """The small Transformer that predicts the next chunk's thumbnails (and spectrogram)."""

    width: int = checked_field(384, minimum=6)
    layers: int = checked_field(2, minimum=1)
    heads: int = checked_field(6, minimum=1)
    mlp_dim: int = checked_field(1536, minimum=1)

    def __post_init__(self) -> None:
        check_fields(self)
        _divides(self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    """Llama 3's stretch of the rotary frequencies: slow ones turn `factor` times slower, fast ones as before, those between by a share."""

    factor: float = checked_field(1.0, "1 = none", minimum=1)
    low_freq_factor: float = checked_field(1.0, "turns within the original length below which a frequency is stretched in full", above=0)
    high_freq_factor: float = checked_field(4.0, "turns within the original length above which it is left alone", above=0)
    original_max_positions: int = checked_field(8192, "length that the model was trained with first", minimum=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.high_freq_factor <= self.low_freq_factor:
            raise FieldError("high_freq_factor", f"{self.high_freq_factor} is not above low_freq_factor {self.low_freq_factor}")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text decoder, in the layout of Llama-format checkpoints, with cross-attention every k-th layer."""

    width: int = checked_field(1024, minimum=6)
    layers: int = checked_field(12, minimum=1)
    heads: int = checked_field(16, minimum=1)
    kv_heads: int = checked_field(16, "grouped-query attention: key/value heads", minimum=1)
    head_dim: int | None = checked_field(None, "width of a head; null: width / heads (Qwen 3 has its own)", minimum=2)
    mlp_dim: int = checked_field(2816, minimum=1)
    cross_attention_every: int = checked_field(2, "cross-attention after every k-th layer", minimum=1)
    qkv_bias: bool = checked_field(False, "biases on queries, keys and values (Qwen 2)")
    qk_norm: bool = checked_field(False, "norms on the queries and keys of every head (Qwen 3)")
    rope_theta: float = checked_field(10000.0, above=0)
    rope_scaling: RopeScalingConfig = checked_field(factory=RopeScalingConfig, help="stretched rotary positions (Llama 3)")
    norm_eps: float = checked_field(1e-5, above=0)
    tie_embeddings: bool = checked_field(True, "output layer shares the embedding's weights")
    dropout: float = checked_field(0.0, minimum=0, maximum=0.9)
    sees: str = checked_field("all", "latents of all chunks, of the last one, or a TTM's memory alone", choices=("all", "last", "memory"))
    sees_memory: bool = checked_field(True, "OURS: the text attends to a TTM's memory beside the latents")
    cross_attention_gate_init: str = checked_field(
        "open", "cross-attention gate at the start; `closed` for pretrained decoders", choices=("open", "closed")
    )
    max_context: int = checked_field(512, "tokens of context text kept", minimum=0)
    max_question: int = checked_field(128, "tokens of question kept", minimum=1)
    max_answer: int = checked_field(64, "tokens of a target kept in training", minimum=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.head_dim is None:
            _divides(self.width, self.heads)
        if self.heads % self.kv_heads:
            raise FieldError("kv_heads", f"{self.heads} heads are not divisible by {self.kv_heads}")
        if self.head_width % 2:
            key, what = ("heads", f"width {self.width} / {self.heads} heads") if self.head_dim is None else ("head_dim", f"{self.head_dim}")
            raise FieldError(key, f"{what} is odd; rotary positions need an even head width")
        if self.cross_attention_every > self.layers:
            raise FieldError(
                "cross_attention_every", f"{self.cross_attention_every} is above {self.layers} layers; the text would never see the media"
            )

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    @staticmethod
    def from_plain(plain: dict) -> TextConfig:
        return TextConfig(**plain | {"rope_scaling": RopeScalingConfig(**plain.get("rope_scaling", {}))})


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation: parts that stay as they are but for a small product beside every linear map of their layers."""

    parts: tuple[str, ...] = checked_field((), "of encoder, video_encoder, audio_encoder, text; none: no LoRA")
    rank: int = checked_field(8, minimum=1)
    alpha: float = checked_field(16.0, "the product is scaled by alpha / rank", above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        for part in self.parts:
            if part not in ("encoder", "video_encoder", "audio_encoder", "text"):
                raise FieldError("parts", f"{part!r} is not one of encoder, video_encoder, audio_encoder, text")

    @staticmethod
    def from_plain(plain: dict) -> LoraConfig:
        return LoraConfig(**plain | {"parts": tuple(plain.get("parts", ()))})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The recipe section `model:`, after the preset has been filled in."""

    preset: str = checked_field("base", choices=("demo", "small", "base", "mirasol3b"))
    encoder: EncoderConfig = checked_field(factory=EncoderConfig)
    video_encoder: TrunkConfig | None = checked_field(None, "sizes of the video's own trunk; null: as `encoder` says")
    audio_encoder: TrunkConfig | None = checked_field(None, "sizes of the audio's own trunk; null: as `encoder` says")
    combiner: CombinerConfig = checked_field(factory=CombinerConfig)
    latent: LatentConfig = checked_field(factory=LatentConfig)
    reconstruction: ReconstructionConfig = checked_field(factory=ReconstructionConfig)
    text: TextConfig = checked_field(factory=TextConfig)
    lora: LoraConfig = checked_field(factory=LoraConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.text.sees == "memory" and not (self.combiner.kind == "ttm" and self.text.sees_memory):
            raise FieldError("text.sees", "memory needs the Combiner 'ttm' and text.sees_memory: true; nothing else carries a memory")
        if self.encoder.share and (self.video_encoder or self.audio_encoder):
            object.__setattr__(self, "encoder", replace(self.encoder, share=False))

    @property
    def video_trunk(self) -> TrunkConfig:
        return self.video_encoder or self.encoder

    @property
    def audio_trunk(self) -> TrunkConfig:
        return self.audio_encoder or self.encoder

    def latents_per_chunk(self, geometry: ClipGeometry) -> int:
        """M, or N where no Combiner compresses."""
        return geometry.tokens_per_chunk if self.combiner.kind == "none" else self.combiner.num_outputs

    @staticmethod
    def from_plain(plain: dict) -> ModelConfig:
        return ModelConfig(
            preset=plain["preset"],
            encoder=EncoderConfig(**plain["encoder"]),
            video_encoder=_trunk(plain.get("video_encoder")),
            audio_encoder=_trunk(plain.get("audio_encoder")),
            combiner=CombinerConfig(**plain["combiner"]),
            latent=LatentConfig(**plain["latent"]),
            reconstruction=ReconstructionConfig(**plain["reconstruction"]),
            text=TextConfig.from_plain(plain["text"]),
            lora=LoraConfig.from_plain(plain.get("lora", {})),
        )


def _trunk(plain: dict | None) -> TrunkConfig | None:
    return None if plain is None else TrunkConfig(**plain)


def _divides(width: int, heads: int) -> None:
    if width % heads:
        raise FieldError("heads", f"width {width} is not divisible by {heads} heads")


# A preset holds only what differs from the class defaults (which are `base`). The paper gives no widths or depths
# (only "3B" and the share of the audio-video part), so all sizes here are OURS.
PRESETS: dict[str, dict[str, dict]] = {
    "demo": {
        "encoder": {"width": 128, "layers": 2, "heads": 4, "mlp_dim": 512},
        "combiner": {"width": 128, "layers": 1, "heads": 4, "mlp_dim": 512, "num_outputs": 16, "memory_tokens": 32},
        "latent": {"width": 128, "layers": 2, "heads": 4, "mlp_dim": 512},
        "reconstruction": {"width": 64, "layers": 1, "heads": 2, "mlp_dim": 256},
        "text": {"width": 128, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_dim": 384, "cross_attention_every": 1},
    },
    "small": {
        "encoder": {"width": 512, "layers": 8, "heads": 8, "mlp_dim": 2048},
        "combiner": {"width": 512, "layers": 4, "heads": 8, "mlp_dim": 2048},
        "latent": {"width": 512, "layers": 6, "heads": 8, "mlp_dim": 2048},
        "reconstruction": {"width": 256, "layers": 2, "heads": 4, "mlp_dim": 1024},
        "text": {"width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "mlp_dim": 1408},
    },
    "base": {},
    # ViT-H encoder (TubeViT Table 11), text part in TinyLlama's shape so that those weights fit.
    "mirasol3b": {
        "encoder": {"width": 1280, "layers": 32, "heads": 16, "mlp_dim": 5120},
        "combiner": {"width": 2048, "layers": 8, "heads": 16, "mlp_dim": 8192},
        "latent": {"width": 2048, "layers": 14, "heads": 16, "mlp_dim": 8192},
        "reconstruction": {"width": 1024, "layers": 6, "heads": 16, "mlp_dim": 4096},
        "text": {
            "width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "mlp_dim": 5632, "cross_attention_every": 4, "tie_embeddings": False,
        },
    },
}  # fmt: skip
