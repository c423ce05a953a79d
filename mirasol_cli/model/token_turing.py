"""Token Turing Machine (arXiv 2211.09119), after the equations of section 3 and the authors' code.

Per chunk, with memory of K tokens and N inputs: read Z = S_M([memory; input]), process O = Transformer(Z),
write memory' = S_K([memory; input; O]); O are the M outputs. Two things differ from the original, both on purpose:
memory comes in and goes out as a value (long video is fed piece by piece), and the learned positions give all inputs
one vector, because N changes with the frames of a chunk while the weights must not (the inputs bring positions of
their own). A chunk without a valid token leaves the memory as it was. GELU is the tanh form and LayerNorm's eps 1e-6,
Flax's defaults. The write `gated` is OURS (`WriteGate`).

Shapes: K memory tokens, P tokens that a summary has (M of a read, K of a write).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirasol_cli.model.config import CombinerConfig
from mirasol_cli.model.layers import BRANCH_INIT_SCALE, Block, FeedForward, keep_in_graph, learned_parameter, linear, norm, residual

BOTTLENECK = 64  # hidden units of TokenLearner's small network
MAX_TIMESCALE_CHUNKS = 256.0
"""Chunks over which the slowest memory token of a gated write forgets, at the start. A model of short clips does not learn to use
slower ones: with 1,024 it remembered less after training on longer clips, not more."""


class TokenLearner(nn.Module):
    """S_P of TokenLearner v1.1: softmax over tokens of MLP(LayerNorm(X)), times X itself.

    The scores of a token depend on it alone, so that those of all chunks' inputs are one product (`score`).
    """

    def __init__(self, width: int, outputs: int, dropout: float):
        super().__init__()
        self.norm = norm(width)
        self.scores = FeedForward(width, BOTTLENECK, output=outputs, dropout=dropout, activation="gelu_tanh")

    def score(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., P]."""
        return self.scores(self.norm(x))

    def forward(self, tokens: list[Tensor], scores: list[Tensor], valid_BL: Tensor | None) -> Tensor:
        """Parts of the sequence, [B, L_i, D] with [B, L_i, P], in order -> [B, P, D]."""
        scores_BLP = torch.cat(scores, dim=1)
        if valid_BL is not None:
            scores_BLP = scores_BLP.masked_fill(~valid_BL[..., None], float("-inf"))
        return scores_BLP.softmax(dim=1).transpose(1, 2) @ torch.cat(tokens, dim=1)


class WriteGate(nn.Module):
    """OURS: memory' = memory + g (written - memory), where g = sigmoid(W [LayerNorm(memory), LayerNorm(written)] + b), per channel.

    What TokenLearner writes is a mean, and a mean of means forgets: after some twenty chunks nothing is left of an event. A gate
    that stays shut keeps a memory token as it is, for as long as nothing worth writing comes. The biases b, one per memory
    token, start so that the tokens forget at different paces, a part 1/T per chunk with T from 1 to LONGEST (the chrono
    initialisation of gated recurrent networks, arXiv 1804.11188).
    """

    def __init__(self, width: int, memory: int):
        super().__init__()
        self.memory_norm, self.written_norm = norm(width), norm(width)
        self.gate_proj = linear(2 * width, width)
        with torch.no_grad():
            self.gate_proj.weight *= BRANCH_INIT_SCALE
        paces = torch.logspace(0, 1, memory, base=MAX_TIMESCALE_CHUNKS)
        self.gate_bias = nn.Parameter(-paces.log()[:, None])

    def forward(self, memory_BKD: Tensor, written_BKD: Tensor) -> Tensor:
        both = torch.cat([self.memory_norm(memory_BKD), self.written_norm(written_BKD)], dim=-1)
        return memory_BKD + (self.gate_proj(both) + self.gate_bias).sigmoid() * (written_BKD - memory_BKD)


class TokenTuringMachine(nn.Module):
    """[B, T, N, D] and memory -> M outputs per chunk [B, T, M, D] and the memory after the last chunk."""

    def __init__(self, config: CombinerConfig):
        super().__init__()
        width, self.outputs = config.width, config.num_outputs
        self.initial_memory = learned_parameter(config.memory_tokens, width) if config.initial_memory == "learned" else None
        self.memory_size = config.memory_tokens
        self.read = TokenLearner(width, config.num_outputs, config.dropout)
        self.write = TokenLearner(width, config.memory_tokens, config.dropout)
        self.gate = WriteGate(width, config.memory_tokens) if config.write == "gated" else None
        placed = config.positions
        self.read_memory_position = learned_parameter(config.memory_tokens, width) if placed else None
        self.read_input_position = learned_parameter(width) if placed else None
        self.write_memory_position = learned_parameter(config.memory_tokens, width) if placed else None
        self.write_input_position = learned_parameter(width) if placed else None
        self.write_output_position = learned_parameter(config.num_outputs, width) if placed else None
        self.process_position = learned_parameter(config.num_outputs, width)
        self.process = nn.ModuleList(
            Block(width, config.heads, config.mlp_dim, dropout=config.dropout, activation="gelu_tanh") for _ in range(config.layers)
        )
        self.process_norm = norm(width)
        self.dropout = config.dropout

    def start(self, x_BTND: Tensor) -> Tensor:
        """The memory before the first chunk, [B, K, D]; the original starts from zeros."""
        if self.initial_memory is None:
            return x_BTND.new_zeros(x_BTND.shape[0], self.memory_size, x_BTND.shape[-1])
        return self.initial_memory.to(x_BTND.dtype).expand(x_BTND.shape[0], -1, -1)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, memory_BKD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Invalid inputs get no weight in read and write. Memory and outputs are always valid."""
        memory = self.start(x_BTND) if memory_BKD is None else memory_BKD
        read, write = _add_position(x_BTND, self.read_input_position), _add_position(x_BTND, self.write_input_position)
        # Unbound at once: the gradient of a single slice would be as large as the whole.
        inputs = zip(*(x.unbind(dim=1) for x in (read, self.read.score(read), write, self.write.score(write))), strict=True)
        outputs = []
        for t, (read_BND, read_scores, write_BND, write_scores) in enumerate(inputs):
            valid_BN = None if valid_BTN is None else valid_BTN[:, t]
            output = self._process(self._read(memory, read_BND, read_scores, valid_BN))
            written = self._write(memory, write_BND, write_scores, output, valid_BN)
            memory = written if valid_BN is None else torch.where(valid_BN.any(dim=1)[:, None, None], written, memory)
            outputs.append(output)
        result = torch.stack(outputs, dim=1)
        return (keep_in_graph(result, memory), memory) if len(outputs) == 1 else (result, memory)  # one chunk alone never uses its write

    def _read(self, memory: Tensor, x_BND: Tensor, scores_BNP: Tensor, valid_BN: Tensor | None) -> Tensor:
        before = _add_position(memory, self.read_memory_position)
        return self.read([before, x_BND], [self.read.score(before), scores_BNP], _padded(valid_BN, memory.shape[1], 0))

    def _process(self, x_BMD: Tensor) -> Tensor:
        x = F.dropout(residual(x_BMD) + self.process_position, self.dropout, self.training)
        for block in self.process:
            x = block(x)
        return self.process_norm(x)

    def _write(self, memory: Tensor, x_BND: Tensor, scores_BNP: Tensor, output: Tensor, valid_BN: Tensor | None) -> Tensor:
        before, after = _add_position(memory, self.write_memory_position), _add_position(output, self.write_output_position)
        scores = [self.write.score(before), scores_BNP, self.write.score(after)]
        written = self.write([before, x_BND, after], scores, _padded(valid_BN, memory.shape[1], output.shape[1]))
        return written if self.gate is None else self.gate(memory, written)


def _add_position(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position


def _padded(valid_BN: Tensor | None, before: int, after: int) -> Tensor | None:
    """The mask of inputs with valid tokens around them."""
    return None if valid_BN is None else F.pad(valid_BN, (before, after), value=True)
