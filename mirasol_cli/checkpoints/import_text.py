"""Start from a public language model of the Llama layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mirasol_cli.checkpoints.import_plan import LoadReport, Plan, check_equal, check_type, prefix_of
from mirasol_cli.checkpoints.safetensors_folder import SafetensorsFolder
from mirasol_cli.config.families import TEXT_FAMILIES, text_problems, text_sizes
from mirasol_cli.errors import CheckpointError
from mirasol_cli.fields import to_plain
from mirasol_cli.model.config import RopeScalingConfig
from mirasol_cli.model.mirasol import Mirasol

PROMPT_MARKS = 16  # tokens of a text that the recipe's limits do not count


def load_text_decoder(model: Mirasol, folder: Path) -> LoadReport:
    """A language model of the Llama layout (Llama 1 to 3, Mistral, SmolLM, Qwen 2 and 3) into the text decoder.

    The gates of the cross-attention are closed, so that training starts from exactly that language model. An embedding
    with more rows than the vocabulary has pieces (padding of the source) is cut; one with fewer is refused.

    Raises:
        CheckpointError: another architecture, sizes that differ from the recipe's, or damaged files.
    """
    source = check_text_decoder(model, folder)
    prefix = prefix_of(source, "embed_tokens.weight")
    plan = Plan(model, source, ("text.",))
    for name in plan.ours:
        inner = name.removeprefix("text.")
        if inner.startswith(("layers.", "norm.")):
            plan.put(name, plan.take(prefix + inner))

    embedding_VD = plan.take(prefix + "embed_tokens.weight")
    _plan_rows(plan, "text.embed_tokens.weight", embedding_VD)
    if model.text.lm_head is not None:
        tied = "lm_head.weight" not in source.names
        _plan_rows(plan, "text.lm_head.weight", embedding_VD if tied else plan.take("lm_head.weight"))
    for number in range(len(model.text.cross_layers)):
        plan.put(f"text.cross_layers.{number}.gate", torch.zeros(1), "closed, so that the source's own answers are kept")
    return plan.carry_out()


def _plan_rows(plan: Plan, name: str, value_VD: Tensor) -> None:
    rows, pieces = value_VD.shape[0], plan.model.vocab_size
    plan.put(name, value_VD[:pieces], f"first {pieces} of {rows} rows" if rows > pieces else "")


def check_text_decoder(model: Mirasol, folder: Path) -> SafetensorsFolder:
    """The folder, if by its config.json and the heads of its files it fits the model, which may be without memory.

    Raises CheckpointError as `load_text_decoder`.
    """
    source, text = SafetensorsFolder(folder), model.config.text
    check_type(source, "a text model", TEXT_FAMILIES)
    problems = text_problems(source.config, text.max_context + text.max_question + text.max_answer + PROMPT_MARKS)
    if problems:
        raise CheckpointError(f"'{source.folder}' needs features that the text decoder lacks: {'; '.join(problems)}", "use another model")
    ours, theirs = to_plain(text), text_sizes(source.config)
    if theirs["tie_embeddings"]:
        theirs["tie_embeddings"] = ours["tie_embeddings"]  # both ways: an output layer of its own starts as the embedding
    theirs["head_dim"], ours["head_dim"] = theirs["head_dim"] or text.width // text.heads, text.head_width
    theirs.setdefault("rope_scaling", to_plain(RopeScalingConfig()))
    pieces, rows = model.vocab_size, source.config.get("vocab_size")
    pairs = {f"model.text.{key}": (ours[key], value) for key, value in theirs.items()}
    check_equal(source, pairs | {"the vocabulary": (pieces, pieces if isinstance(rows, int) and rows >= pieces else rows)})
    return source
