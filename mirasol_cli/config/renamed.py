"""Keys of before the first release. Nothing reads them: whoever gives one is told its name of today, or that it is gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RENAMED = {
    "data.sound": "data.audio",
    "clip.context_s": "clip.min_span_s",
    "clip.audio.bins": "clip.audio.n_mels",
    "clip.audio.window": "clip.audio.win_length",
    "clip.audio.hop": "clip.audio.hop_length",
    "init.vocabulary": "init.vocab_size",
    "model.encoder.mlp": "model.encoder.mlp_dim",
    "model.combiner.mlp": "model.combiner.mlp_dim",
    "model.combiner.outputs": "model.combiner.num_outputs",
    "model.combiner.memory": "model.combiner.memory_tokens",
    "model.latent.mlp": "model.latent.mlp_dim",
    "model.reconstruction.mlp": "model.reconstruction.mlp_dim",
    "model.text.mlp": "model.text.mlp_dim",
    "model.text.cross_every": "model.text.cross_attention_every",
    "model.text.gate": "model.text.cross_attention_gate_init",
    "train.batch_clips": "train.global_batch_size",
    "train.micro_batch_clips": "train.micro_batch_size",
    "train.rates": "train.lr_mult",
    "train.layer_decay": "train.layerwise_lr_decay",
    "train.min_lr": "train.min_lr_ratio",
    "train.clip_norm": "train.max_grad_norm",
    "train.ema": "train.ema_decay",
    "train.checkpoint_activations": "train.activation_checkpointing",
    "train.keep": "train.keep_checkpoints",
    "train.evaluate_every": "train.eval_every",
    "train.evaluate_limit": "train.val_clips",
    "train.bad_steps": "train.max_skipped_steps",
    "train.augment.stretch": "train.augment.max_chunk_repeats",
    "train.augment.memory_alone": "train.augment.memory_only",
    "eval.batch_clips": "eval.batch_size",
}
"""Old key -> the key that replaces it."""

RETIRED = {
    "model.heads": "a loss brings the parameters that it needs; remove this key",
    "model.combiner.read": "memory and input are read by TokenLearner; remove this key",
    "loss.contrastive": "the contrastive loss was removed; remove this key",
    "loss.label_smoothing": "label smoothing was removed; remove this key",
    "eval.official": "the wrong figure of the official script is no longer printed; remove this key",
}
"""Old key that nothing replaces -> what to do."""


def old_keys(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """(old key, the key that replaces it or None) of every old key in the nested mapping."""
    for key, value in plain.items():
        name = f"{prefix}.{key}" if prefix else key
        if name in RENAMED or name in RETIRED:
            yield name, RENAMED.get(name)
        elif isinstance(value, Mapping):
            yield from old_keys(value, name)
