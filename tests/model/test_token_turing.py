"""The Token Turing Machine against straight-line NumPy of its equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mirasol_cli.model.token_turing import TokenTuringMachine, WriteGate
from tests.small_model import combiner_config

VARIANTS = [
    {"write": "tokenlearner"},
    {"write": "gated"},
    {"write": "tokenlearner", "positions": False, "initial_memory": "zero"},
]


def machine(**changes) -> TokenTuringMachine:
    torch.manual_seed(1)
    result = TokenTuringMachine(combiner_config("ttm", **changes)).eval()
    with torch.no_grad():
        for parameter in result.parameters():  # nothing stays zero or one, so that no term can be forgotten unseen
            parameter += 0.1 * torch.randn_like(parameter)
    return result


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


class Reference:
    """One clip, one token at a time where the equations speak of tokens, in float64."""

    def __init__(self, ttm: TokenTuringMachine, heads: int):
        self.p = {name: value.detach().double().numpy() for name, value in ttm.state_dict().items()}
        self.heads, self.layers = heads, len(ttm.process)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.p[name + ".weight"].T + self.p[name + ".bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * self.p[name + ".weight"] + self.p[name + ".bias"]

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        h = self.linear(x, name + ".up")
        gelu = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return self.linear(gelu, name + ".down")

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
        d = q.shape[1] // heads
        out = np.zeros_like(q)
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            out[:, part] = softmax(q[:, part] @ k[:, part].T / math.sqrt(d), axis=1) @ v[:, part]
        return out

    def pool(self, x: np.ndarray, name: str) -> np.ndarray:
        if name + ".tokens" in self.p:
            q = self.linear(self.p[name + ".tokens"], name + ".query")
            k, v = np.split(self.linear(x, name + ".key_value"), 2, axis=1)
            return self.linear(self.attend(q, k, v, 8), name + ".out")
        weights = softmax(self.mlp(self.norm(x, name + ".norm"), name + ".scores"), axis=0)
        return weights.T @ x

    def gate(self, memory: np.ndarray, written: np.ndarray) -> np.ndarray:
        kept = []
        for slot in range(len(memory)):
            both = np.concatenate([self.norm(memory[slot], "gate.memory_norm"), self.norm(written[slot], "gate.written_norm")])
            g = 1 / (1 + np.exp(-(self.linear(both, "gate.gate_proj") + self.p["gate.gate_bias"][slot])))
            kept.append((1 - g) * memory[slot] + g * written[slot])
        return np.stack(kept)

    def process(self, z: np.ndarray) -> np.ndarray:
        z = z + self.p["process_position"]
        for layer in range(self.layers):
            name = f"process.{layer}"
            y = self.norm(z, name + ".norm1")
            k, v = np.split(self.linear(y, name + ".attention.key_value"), 2, axis=1)
            z = z + self.linear(self.attend(self.linear(y, name + ".attention.query"), k, v, self.heads), name + ".attention.out")
            z = z + self.mlp(self.norm(z, name + ".norm2"), name + ".mlp")
        return self.norm(z, "process_norm")

    def add_erase(self, memory: np.ndarray, output: np.ndarray) -> np.ndarray:
        w = softmax(self.mlp(self.norm(memory, "write.select_norm"), "write.select"), axis=0)  # [K, 8]
        e = self.mlp(self.mlp(self.norm(output, "write.erase_norm").T, "write.erase_tokens").T, "write.erase_channels")
        a = self.mlp(self.mlp(self.norm(output, "write.add_norm").T, "write.add_tokens").T, "write.add_channels")
        kept, added = np.ones_like(memory), np.zeros_like(memory)
        for s in range(8):
            kept *= 1 - np.outer(w[:, s], e[s])
            added += (1 - np.outer(w[:, s], a[s])) / 8
        return memory * kept + added

    def run(self, x_TND: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = lambda x, name: x + self.p[name] if name in self.p else x  # noqa: E731
        outputs = []
        for inputs in x_TND:
            read = np.concatenate([place(memory, "read_memory_position"), place(inputs, "read_input_position")])
            output = self.process(self.pool(read, "read"))
            outputs.append(output)
            if "write.select_norm.weight" in self.p:
                memory = self.add_erase(memory, output)
            else:
                parts = [place(memory, "write_memory_position"), place(inputs, "write_input_position")]
                written = self.pool(np.concatenate([*parts, place(output, "write_output_position")]), "write")
                memory = self.gate(memory, written) if "gate.gate_bias" in self.p else written
        return np.stack(outputs), memory


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_equals_the_straight_line_reference(variant: dict) -> None:
    ttm = machine(**variant)
    x = torch.randn(2, 5, 11, 32)
    outputs, memory = ttm(x)
    reference = Reference(ttm, heads=2)
    start = reference.p.get("initial_memory", np.zeros((6, 32)))
    for clip in range(2):
        expected, expected_memory = reference.run(x[clip].double().numpy(), start)
        np.testing.assert_allclose(outputs[clip].detach().numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(memory[clip].detach().numpy(), expected_memory, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_chunk_by_chunk_equals_at_once(variant: dict) -> None:
    ttm, x = machine(**variant), torch.randn(2, 6, 11, 32)
    valid = torch.rand(2, 6, 11) > 0.3
    whole, last = ttm(x, valid)
    memory, pieces = None, []
    for piece, mask in zip(x.split([1, 2, 3], dim=1), valid.split([1, 2, 3], dim=1), strict=True):
        out, memory = ttm(piece, mask, memory)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(memory, last)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_masked_inputs_get_no_weight(variant: dict) -> None:
    ttm, x = machine(**variant), torch.randn(1, 3, 11, 32)
    valid = torch.ones(1, 3, 11, dtype=torch.bool)
    valid[:, :, 6:] = False
    short, _ = ttm(x[:, :, :6])
    torch.testing.assert_close(ttm(x, valid)[0], short)
    valid[:, 1] = False
    assert ttm(x, valid)[0].isfinite().all()


def test_a_gate_starts_to_forget_at_many_paces() -> None:
    """Of what a memory token held, a part of about e^-1 is left after as many chunks as its pace says."""
    torch.manual_seed(0)
    gate = WriteGate(64, 9)  # paces of 1, 2, 4 ... 256 chunks
    memory, written = torch.ones(1, 9, 64), torch.zeros(1, 9, 64)
    left = []
    with torch.no_grad():
        for _ in range(64):
            memory = gate(memory, written)
            left.append(memory.mean(-1).flatten())
    assert left[63][8] > 0.7
    assert left[63][6] == pytest.approx(math.exp(-1), abs=0.08)  # 64 chunks
    assert left[3][2] == pytest.approx((1 - 0.2) ** 4, abs=0.1)  # 4 chunks: sigmoid(-log 4) = 1 / 5
    assert left[0][0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_chunk_without_input_writes_nothing(variant: dict) -> None:
    ttm, x = machine(**variant), torch.randn(2, 4, 11, 32)
    valid = torch.ones(2, 4, 11, dtype=torch.bool)
    valid[0, 1] = valid[0, 3] = False
    memory = ttm(x, valid)[1]
    torch.testing.assert_close(memory[:1], ttm(x[:1, [0, 2]])[1])
    torch.testing.assert_close(memory[1:], ttm(x[1:])[1])


def test_every_parameter_gets_a_gradient_even_from_one_chunk() -> None:
    for variant in VARIANTS:
        for chunks in (1, 3):
            ttm = machine(**variant)
            ttm(torch.randn(2, chunks, 11, 32))[0].sum().backward()
            assert [name for name, p in ttm.named_parameters() if p.grad is None] == []


def test_products_per_chunk_are_constant() -> None:
    ttm = machine()

    def products(chunks: int) -> int:
        with FlopCounterMode(display=False) as counter:
            ttm(torch.randn(1, chunks, 11, 32))
        return counter.get_total_flops()

    assert {products(chunks) / chunks for chunks in (4, 64, 512)} == {products(4) / 4}


def test_the_initial_memory_is_learned_or_zero() -> None:
    x = torch.randn(1, 2, 11, 32)
    assert machine(initial_memory="zero").start(x).abs().sum() == 0
    learned = machine(initial_memory="learned")
    learned(x)[0].sum().backward()
    assert learned.initial_memory is not None
    assert learned.initial_memory.grad is not None
    assert learned.initial_memory.grad.abs().sum() > 0
