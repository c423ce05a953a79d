"""Every key a recipe may hold: frozen dataclasses, one per section, no torch and no YAML."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any

from mirasol_cli.fields import FieldError, check_fields, check_folder_name, checked_field, to_plain
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.model.config import ModelConfig
from mirasol_cli.model.objectives import OBJECTIVES

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One source of a training mixture."""

    dataset: str = checked_field(help="data set name, or a name of your own for a manifest")
    task: str = checked_field("qa", "which texts of the shards: qa, mc, oe, caption, label")
    shards: str | None = checked_field(None, "shard folder; null: the default folder of data set and geometry")
    split: str = checked_field("train", "split to train on")
    ratio: float = checked_field(1.0, "share of the units drawn from this source, relative to the others", above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_folder_name("dataset", self.dataset)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    dataset: str = checked_field("manifest", "data set name, or a name of your own for a manifest")
    task: str = checked_field("qa", "which texts of the shards: qa, mc, oe, caption, label")
    shards: str | None = checked_field(None, "shard folder; null: data/<dataset>/shards/<geometry>")
    split: str = checked_field("train", "split to train on")
    fold: int | None = checked_field(None, "sets in folds (esc50): train on all folds but this one, which is tested", minimum=1)
    folds: int = checked_field(5, "how many folds there are; they are the splits fold1, fold2, ...", minimum=2)
    sources: tuple[SourceRecipe, ...] = checked_field((), "several sources with ratios, instead of the four keys above")
    questions_per_clip: int = checked_field(8, "most questions of a clip in one unit (its media are encoded once)", minimum=1)
    video: bool = checked_field(True, "false leaves the video out: nothing of it is computed")
    audio: bool = checked_field(True, "false leaves the audio out, as the paper's VideoQA results do")
    length_window: int = checked_field(
        1, "global batches whose clips are exchanged so that texts of like length come together; 1 = none. It saves padding where "
        "lengths differ much, as with contexts", minimum=1,
    )  # fmt: skip
    readers: int = checked_field(4, "threads per process that read clips ahead; more of them hide the latency of shared storage", minimum=1)
    limit: int | None = checked_field(None, "only the first N clips", minimum=1)
    seed: int = checked_field(0, "`prepare demo` and `demo-long` only: which world to render; training reads what was prepared last")
    clips: int = checked_field(
        0, "`prepare demo` and `demo-long` only: training clips to render; 0 = as many as the world has (2000, 400); training reads "
        "what was prepared last", minimum=0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)
        check_folder_name("dataset", self.dataset)
        if self.fold is not None and self.fold > self.folds:
            raise FieldError("fold", f"{self.fold} is above data.folds, {self.folds}")
        if self.fold is not None and self.split != "train":
            raise FieldError("split", f"'{self.split}' is not read, since data.fold names the splits to train on; set data.fold to null")
        if self.fold is not None and self.sources:
            raise FieldError("fold", "a fold of which source? With data.sources, list the splits to train on there")
        if not self.audio and not self.video:
            raise FieldError("video", "data.audio and data.video are both false; there is nothing to see or hear")

    @property
    def modalities(self) -> dict[str, bool]:
        """Which of video and audio are there, by name."""
        return {"video": self.video, "audio": self.audio}

    def training_sources(self) -> tuple[SourceRecipe, ...]:
        if self.sources:
            return self.sources
        others = [fold_split(fold) for fold in range(1, self.folds + 1) if fold != self.fold]
        splits = [self.split] if self.fold is None else others
        return tuple(SourceRecipe(dataset=self.dataset, task=self.task, shards=self.shards, split=split) for split in splits)


def fold_split(fold: int) -> str:
    """The split that a fold is."""
    return f"fold{fold}"


@dataclass(frozen=True, kw_only=True)
class InitRecipe:
    """Where weights and vocabulary come from: folders in Hugging Face layout, or hf:ORG/NAME[@REVISION]."""

    checkpoint: str | None = checked_field(None, "a mirasol checkpoint or run folder: all parts that fit")
    video_encoder: str | None = checked_field(None, "ViT, DeiT, CLIP, SigLIP, DINOv2 or VideoMAE folder: patch kernel inflated into tubes")
    audio_encoder: str | None = checked_field(None, "AST or Whisper folder; sets clip.audio.frontend, which `prepare` must know, too")
    text_decoder: str | None = checked_field(None, "Llama, Mistral, SmolLM or Qwen folder (safetensors, tokenizer)")
    tokenizer: str | None = checked_field(
        None, "SentencePiece model or tokenizer.json; null: the checkpoint's, the text decoder's, or a new one"
    )
    vocab_size: int = checked_field(8000, "largest size of a vocabulary trained here", minimum=300)

    def __post_init__(self) -> None:
        check_fields(self)


_LossKeys: Any = make_dataclass(
    "_LossKeys",
    [(loss.name, float, checked_field(loss.weight, loss.help, minimum=0)) for loss in OBJECTIVES.values()],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class LossRecipe(_LossKeys):
    """A weight for every loss of model/objectives.py. The paper: all equal in pretraining, text tenfold in finetuning [reported by a
    second-hand source]."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.weights:
            raise FieldError("text", "all loss weights are zero; there is nothing to train")

    @property
    def weights(self) -> dict[str, float]:
        """Those above zero, by the loss's name."""
        found = {name: float(getattr(self, name)) for name in OBJECTIVES}
        return {name: weight for name, weight in found.items() if weight > 0}


@dataclass(frozen=True, kw_only=True)
class RatesRecipe:
    """Learning-rate factors per part of the model."""

    encoder: float = checked_field(1.0, minimum=0)
    combiner: float = checked_field(1.0, minimum=0)
    latent: float = checked_field(1.0, minimum=0)
    text: float = checked_field(1.0, minimum=0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """Changes to training samples only."""

    flip: float = checked_field(0.0, "probability of a horizontal flip", minimum=0, maximum=1)
    colour: float = checked_field(0.0, "strength of brightness and contrast changes", minimum=0, maximum=1)
    mask_bins: int = checked_field(0, "SpecAugment: mel bins masked at most", minimum=0)
    mask_columns: int = checked_field(0, "SpecAugment: columns per chunk masked at most", minimum=0)
    time_shift: float = checked_field(
        0.0,
        "clips without video: the audio begins up to this share of the clip later or earlier; what leaves one end enters at the other",
        minimum=0,
        maximum=0.5,
    )
    gain_db: float = checked_field(0.0, "dB: audio gets up to this much louder or softer", minimum=0, maximum=60)
    mixup: float = checked_field(
        0.0,
        "probability that a clip is mixed with the next one of its batch; both clips' texts are trained, by their shares in the mix",
        minimum=0,
        maximum=1,
    )
    drop_modality: float = checked_field(
        0.1, "probability that the clips of a step lose their audio, and as much their video", minimum=0, maximum=0.5
    )
    drop_chunks: float = checked_field(0.1, "probability that a clip loses the media of some of its chunks", minimum=0, maximum=0.9)
    mask_latents: float = checked_field(0.15, "share of chunks hidden from the latents that predict the next one", minimum=0, maximum=0.9)
    max_chunk_repeats: int = checked_field(
        1, "ttm: repeat each chunk up to N times in the memory, to imitate clips N times as long", minimum=1
    )
    memory_only: float = checked_field(
        0.0, "ttm: probability that the text sees the memory only, to train it for long videos", minimum=0, maximum=1
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    steps: int = checked_field(20000, "optimizer steps in all", minimum=1)
    global_batch_size: int = checked_field(32, "clips in the global batch of one step, over all processes", minimum=1)
    micro_batch_size: int | None = checked_field(
        None, "micro-batch size per process; null: no gradient accumulation. The latent loss sees one micro-batch", minimum=1
    )
    seed: int = checked_field(0)
    lr: float = checked_field(5e-5, "peak learning rate", above=0)
    lr_mult: RatesRecipe = checked_field(factory=RatesRecipe, help="factors on lr per part")
    layerwise_lr_decay: float = checked_field(1.0, "lr factor per encoder layer from the top down", above=0, maximum=1)
    min_lr_ratio: float = checked_field(0.0, "share of lr that the cosine reaches just after the last step", minimum=0, maximum=1)
    warmup_steps: int = checked_field(0, "linear warm-up", minimum=0)
    weight_decay: float = checked_field(0.01, "decoupled; not on norms, biases, embeddings, gates", minimum=0)
    betas: tuple[float, float] = checked_field((0.9, 0.999), "AdamW")
    max_grad_norm: float = checked_field(1.0, "largest gradient norm; 0 = no clipping", minimum=0)
    ema_decay: float = checked_field(0.0, "decay of the averaged weights used by eval and ask; 0 = none", minimum=0, maximum=0.99999)
    precision: str = checked_field("auto", "auto: float32 on CPU, bf16 on GPUs", choices=("auto", "float32", "bf16"))
    compile: bool = checked_field(False, "torch.compile per block")
    activation_checkpointing: bool = checked_field(False, "recompute each block in the backward pass")
    parallel: str = checked_field("ddp", "with several processes", choices=("ddp", "fsdp"))
    shard_size: int | None = checked_field(
        None, "fsdp: processes that hold the model together (the GPUs of a machine); each such group has a copy; null: all", minimum=1
    )
    checkpoint_every: int = checked_field(1000, "steps between checkpoints", minimum=1)
    keep_checkpoints: int = checked_field(2, "newest checkpoints kept (the best is kept besides)", minimum=1)
    eval_every: int = checked_field(0, "steps between validations; 0 = none", minimum=0)
    val_clips: int = checked_field(200, "clips of a validation during training", minimum=1)
    log_every: int = checked_field(10, "steps between lines of metrics.jsonl", minimum=1)
    balance_every: int = checked_field(
        0, "steps between measurements of each loss's share of the encoders' gradient, by extra backward passes; 0 = none", minimum=0
    )
    max_skipped_steps: int = checked_field(0, "non-finite steps in a row that are skipped before the run stops", minimum=0)
    augment: AugmentRecipe = checked_field(factory=AugmentRecipe)

    def __post_init__(self) -> None:
        check_fields(self)
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise FieldError("betas", f"{beta} is not in [0, 1); AdamW's usual ones are [0.9, 0.999]")
        if self.shard_size is not None and self.parallel != "fsdp":
            raise FieldError("shard_size", f"{self.shard_size} has no meaning with parallel: {self.parallel}; it goes with parallel: fsdp")
        if self.warmup_steps >= self.steps:
            raise FieldError("warmup_steps", f"{self.warmup_steps} is not below steps {self.steps}")


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    split: str | None = checked_field(
        None, "split to evaluate on; null: test, or the fold of data.fold; minitrain, minival: always the same 500 clips of train, val"
    )
    decode: str = checked_field("greedy", choices=("greedy", "sample", "beam"))
    beams: int = checked_field(4, "beam search only", minimum=1)
    temperature: float = checked_field(1.0, "sampling only", above=0)
    top_p: float = checked_field(1.0, "sampling only", above=0, maximum=1)
    max_tokens: int = checked_field(32, "longest answer", minimum=1)
    batch_size: int = checked_field(8, "clips encoded at once", minimum=1)
    seed: int = checked_field(0, "sampling, bootstrap, swap-media")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    dir: str | None = checked_field(None, "run folder; null: runs/<name>")
    tensorboard: bool = checked_field(False, "also write TensorBoard events (extra `tensorboard`)")
    wandb: bool = checked_field(False, "also log to Weights & Biases (extra `wandb`)")
    process_group_timeout_s: float = checked_field(600.0, "how long a process waits for the others within a step", above=0)
    stop_within_s: float = checked_field(
        120.0, "seconds between the scheduler's SIGTERM and its SIGKILL (SLURM: --signal=TERM@120); a save that does not fit is skipped",
        above=0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str = checked_field(help="names the run folder")
    schema: int = checked_field(SCHEMA, "version of this format")
    data: DataRecipe = checked_field(factory=DataRecipe)
    clip: ClipGeometry = checked_field(factory=ClipGeometry)
    model: ModelConfig = checked_field(factory=ModelConfig)
    init: InitRecipe = checked_field(factory=InitRecipe)
    freeze: tuple[str, ...] = checked_field((), "name patterns of parameters that are not trained")
    loss: LossRecipe = checked_field(factory=LossRecipe)
    train: TrainRecipe = checked_field(factory=TrainRecipe)
    eval: EvalRecipe = checked_field(factory=EvalRecipe)
    run: RunRecipe = checked_field(factory=RunRecipe)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.schema != SCHEMA:
            raise FieldError("schema", f"{self.schema} is not supported; this version reads schema {SCHEMA}")
        check_folder_name("name", self.name)
        for key, nothing in (("memory_only", 0), ("max_chunk_repeats", 1)):
            if getattr(self.train.augment, key) > nothing and self.model.combiner.kind != "ttm":
                reason = f"the Combiner '{self.model.combiner.kind}' has no memory, which this trains; set it to {nothing}"
                raise FieldError(f"train.augment.{key}", reason)

    @property
    def run_dir(self) -> str:
        return self.run.dir or f"runs/{self.name}" + ("" if self.data.fold is None else f"-{fold_split(self.data.fold)}")

    @property
    def eval_split(self) -> str:
        """The split that is evaluated where none is named."""
        return self.eval.split or ("test" if self.data.fold is None else fold_split(self.data.fold))

    def to_plain(self) -> dict:
        return to_plain(self)
