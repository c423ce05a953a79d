"""Token Turing Machine (arXiv 2211.09119), after the equations of the authors' code (paper.md 4.2).

Per chunk, with memory of K tokens and N inputs: read Z = S_M([memory; input]), process O = Transformer(Z),
write memory' = S_K([memory; input; O]); O are the M outputs. Two things differ from the original, both on purpose:
memory comes in and goes out as a value (long video is fed piece by piece), and the learned positions give all inputs
one vector, because N changes with the frames of a chunk while the weights must not (the inputs bring positions of
their own). A chunk without a valid token leaves the memory as it was. GELU is the tanh form and LayerNorm's eps 1e-6,
Flax's defaults. The write `gated` is OURS (`WriteGate`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirasol_cli.model.config import CombinerConfig
from mirasol_cli.model.layers import BRANCH, Block, FeedForward, join_heads, learned, linear, norm, split_heads, touch

Prepared = tuple[Tensor, Tensor]
"""What a read or write needs to know of single tokens, each [..., N, x]."""

BOTTLENECK = 64  # hidden units of TokenLearner's and add-erase's small networks
ERASE_TOKENS = 8  # selection maps of the add-erase write
LONGEST = 256.0
"""Chunks over which the slowest memory token of a gated write forgets, at the start. A model of short clips does not learn to use
slower ones: with 1,024 it remembered less after training on longer clips, not more."""
QUERY_HEADS = 8  # heads of the query read and write, whatever the Transformer has


class TokenLearner(nn.Module):
    """TokenLearner v1.1: softmax over tokens of MLP(LayerNorm(X)), times X itself."""

    def __init__(self, width: int, outputs: int, dropout: float):
        super().__init__()
        self.norm = norm(width)
        self.scores = FeedForward(width, BOTTLENECK, output=outputs, dropout=dropout, gelu="tanh")

    def prepare(self, x: Tensor) -> Prepared:
        """What depends on single tokens, so that all chunks' inputs are done in one product: scores and values."""
        return self.scores(self.norm(x)), x

    def summarise(self, scores_BLP: Tensor, x_BLD: Tensor, valid_BL: Tensor | None) -> Tensor:
        """[B, P, D]."""
        if valid_BL is not None:
            scores_BLP = scores_BLP.masked_fill(~valid_BL[..., None], float("-inf"))
        return scores_BLP.softmax(dim=1).transpose(1, 2) @ x_BLD


class QueryPooling(nn.Module):
    """The MHA form of TokenLearner: learned queries, one attention, no LayerNorm, no residual."""

    def __init__(self, width: int, outputs: int, heads: int):
        super().__init__()
        self.heads = QUERY_HEADS if width % QUERY_HEADS == 0 else heads
        self.tokens = learned(outputs, width)
        self.query = linear(width, width)
        self.key_value = linear(width, 2 * width)
        self.out = linear(width, width)

    def prepare(self, x: Tensor) -> Prepared:
        key, value = self.key_value(x).chunk(2, dim=-1)
        return key, value

    def summarise(self, key_BLD: Tensor, value_BLD: Tensor, valid_BL: Tensor | None) -> Tensor:
        query = split_heads(self.query(self.tokens), self.heads).expand(key_BLD.shape[0], -1, -1, -1)
        key, value = split_heads(key_BLD, self.heads), split_heads(value_BLD, self.heads)
        mask = None if valid_BL is None else valid_BL[:, None, None]
        return self.out(join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))


class AddEraseWrite(nn.Module):
    """memory' = memory * prod_s (1 - w_s e_s) + mean_s (1 - w_s a_s): select, erase, add, with s of 8 maps.

    The added term really is 1 - w a in the authors' code.
    """

    def __init__(self, width: int, process: int, dropout: float):
        super().__init__()
        self.select_norm, self.erase_norm, self.add_norm = norm(width), norm(width), norm(width)
        self.select = FeedForward(width, BOTTLENECK, output=ERASE_TOKENS, dropout=dropout, gelu="tanh")
        self.erase_tokens = FeedForward(process, BOTTLENECK, output=ERASE_TOKENS, dropout=dropout, gelu="tanh")
        self.erase_channels = FeedForward(width, BOTTLENECK, dropout=dropout, gelu="tanh")
        self.add_tokens = FeedForward(process, BOTTLENECK, output=ERASE_TOKENS, dropout=dropout, gelu="tanh")
        self.add_channels = FeedForward(width, BOTTLENECK, dropout=dropout, gelu="tanh")

    def forward(self, memory_BKD: Tensor, output_BMD: Tensor) -> Tensor:
        select = self.select(self.select_norm(memory_BKD)).softmax(dim=1).transpose(1, 2)[..., None]  # [B, 8, K, 1]
        erase = self.erase_channels(self.erase_tokens(self.erase_norm(output_BMD).mT).mT)[:, :, None]  # [B, 8, 1, D]
        add = self.add_channels(self.add_tokens(self.add_norm(output_BMD).mT).mT)[:, :, None]
        return memory_BKD * (1 - select * erase).prod(dim=1) + (1 - select * add).mean(dim=1)


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
        self.open = linear(2 * width, width)
        with torch.no_grad():
            self.open.weight *= BRANCH
        paces = torch.logspace(0, 1, memory, base=LONGEST)
        self.pace = nn.Parameter(-paces.log()[:, None])

    def forward(self, memory_BKD: Tensor, written_BKD: Tensor) -> Tensor:
        both = torch.cat([self.memory_norm(memory_BKD), self.written_norm(written_BKD)], dim=-1)
        return memory_BKD + (self.open(both) + self.pace).sigmoid() * (written_BKD - memory_BKD)


class TokenTuringMachine(nn.Module):
    """[B, T, N, D] and memory -> M outputs per chunk [B, T, M, D] and the memory after the last chunk."""

    def __init__(self, config: CombinerConfig):
        super().__init__()
        width, self.outputs = config.width, config.outputs
        self.initial_memory = learned(config.memory, width) if config.initial_memory == "learned" else None
        self.memory_size = config.memory
        self.read = _summariser(config.read, config, config.outputs)
        self.write: AddEraseWrite | TokenLearner | QueryPooling
        if config.write == "add-erase":
            self.write = AddEraseWrite(width, config.outputs, config.dropout)
        else:
            self.write = _summariser(config.write, config, config.memory)
        self.gate = WriteGate(width, config.memory) if config.write == "gated" else None
        placed = config.positions
        self.read_memory_position = learned(config.memory, width) if placed else None
        self.read_input_position = learned(width) if placed else None
        placed = config.positions and config.write != "add-erase"
        self.write_memory_position = learned(config.memory, width) if placed else None
        self.write_input_position = learned(width) if placed else None
        self.write_output_position = learned(config.outputs, width) if placed else None
        self.process_position = learned(config.outputs, width)
        self.process = nn.ModuleList(
            Block(width, config.heads, config.mlp, dropout=config.dropout, gelu="tanh") for _ in range(config.layers)
        )
        self.process_norm = norm(width)
        self.dropout = config.dropout

    def start(self, x_BTND: Tensor) -> Tensor:
        """The memory before the first chunk, [B, K, D]; the original starts from zeros."""
        if self.initial_memory is None:
            return x_BTND.new_zeros(x_BTND.shape[0], self.memory_size, x_BTND.shape[-1])
        return self.initial_memory.to(x_BTND.dtype).expand(x_BTND.shape[0], -1, -1)

    def forward(
        self,
        x_BTND: Tensor,
        valid_BTN: Tensor | None = None,
        memory_BKD: Tensor | None = None,
        stretch_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Invalid inputs get no weight in read and write. Memory and outputs are always valid.

        With `stretch_B` (int64, from 1) every chunk of a clip is fed so many times in a row; its outputs are those of the last time.
        """
        memory = self.start(x_BTND) if memory_BKD is None else memory_BKD
        again = [] if stretch_B is None else [(stretch_B > time).nonzero()[:, 0] for time in range(1, int(stretch_B.max()))]
        reads = _by_chunk(self.read.prepare(_placed(x_BTND, self.read_input_position)))
        writes: Sequence[Prepared | None] = [None] * len(reads)
        if not isinstance(self.write, AddEraseWrite):
            writes = _by_chunk(self.write.prepare(_placed(x_BTND, self.write_input_position)))
        outputs = []
        for t, (read, write) in enumerate(zip(reads, writes, strict=True)):
            valid_BN = None if valid_BTN is None else valid_BTN[:, t]
            output, memory = self._step(memory, read, write, valid_BN)
            for clips in again:
                valid = None if valid_BN is None else valid_BN[clips]
                later = self._step(memory[clips], _of(read, clips), None if write is None else _of(write, clips), valid)
                output = output.index_copy(0, clips, later[0].to(output.dtype))
                memory = memory.index_copy(0, clips, later[1].to(memory.dtype))
            outputs.append(output)
        result = torch.stack(outputs, dim=1)
        return (touch(result, memory), memory) if len(outputs) == 1 else (result, memory)  # one chunk alone never uses its write

    def _step(self, memory: Tensor, read: Prepared, write: Prepared | None, valid_BN: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs of one chunk, and the memory after it."""
        output = self._process(self._read(memory, read, valid_BN))
        written = self._write(memory, write, output, valid_BN)
        return output, written if valid_BN is None else torch.where(valid_BN.any(dim=1)[:, None, None], written, memory)

    def _read(self, memory: Tensor, prepared: Prepared, valid_BN: Tensor | None) -> Tensor:
        first, second = _joined([self.read.prepare(_placed(memory, self.read_memory_position)), prepared])
        return self.read.summarise(first, second, _joined_valid(valid_BN, memory.shape[1], 0))

    def _process(self, x_BMD: Tensor) -> Tensor:
        x = F.dropout(x_BMD + self.process_position, self.dropout, self.training)
        for block in self.process:
            x = block(x)
        return self.process_norm(x)

    def _write(self, memory: Tensor, prepared: Prepared | None, output: Tensor, valid_BN: Tensor | None) -> Tensor:
        if isinstance(self.write, AddEraseWrite):
            return self.write(memory, output)
        assert prepared is not None
        before = self.write.prepare(_placed(memory, self.write_memory_position))
        after = self.write.prepare(_placed(output, self.write_output_position))
        first, second = _joined([before, prepared, after])
        written = self.write.summarise(first, second, _joined_valid(valid_BN, memory.shape[1], output.shape[1]))
        return written if self.gate is None else self.gate(memory, written)


def _summariser(kind: str, config: CombinerConfig, outputs: int) -> TokenLearner | QueryPooling:
    if kind == "query":
        return QueryPooling(config.width, outputs, config.heads)
    return TokenLearner(config.width, outputs, config.dropout)


def _placed(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position


def _by_chunk(prepared: Prepared) -> list[Prepared]:
    """[B, T, N, x] -> T times [B, N, x]. Unbound at once: the gradient of a single slice would be as large as the whole."""
    first, second = prepared
    return list(zip(first.unbind(dim=1), second.unbind(dim=1), strict=True))


def _of(prepared: Prepared, clips: Tensor) -> Prepared:
    first, second = prepared
    return first[clips], second[clips]


def _joined(parts: list[Prepared]) -> list[Tensor]:
    """Token-wise join of several (first, second) pairs."""
    return [torch.cat(list(same), dim=1) for same in zip(*parts, strict=True)]


def _joined_valid(valid_BN: Tensor | None, before: int, after: int) -> Tensor | None:
    return None if valid_BN is None else F.pad(valid_BN, (before, after), value=True)
