"""FLOPs as torch counts them, on models without memory."""

import pytest
import torch

from mirasol_cli.training.flops import forward_flops
from tests.small_model import KINDS, combiner_config, model


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_counted(kind: str) -> None:
    network = model(kind, losses=("text", "latent", "video", "audio"))
    found = forward_flops(network, questions=2, tokens=9, targets=4)
    assert set(found) == set(network.parts())
    assert all(count > 0 for part, count in found.items() if (kind, part) not in (("mean", "combiner"), ("none", "combiner")))


def test_the_decoder_grows_with_its_texts_and_the_tubes_are_one_product() -> None:
    network = model()
    few, many = (forward_flops(network, questions=n, tokens=9, targets=4) for n in (1, 3))
    assert few["text"] < many["text"] < 3 * few["text"]  # keys and values of the latents are projected once
    assert few["encoder"] == many["encoder"]
    geometry, width = network.geometry, network.config.encoder.width
    products = sum(count * tube.kernel_numbers * width for count, tube in zip(geometry.tube_tokens, geometry.tubes, strict=True))
    assert few["video_tokens"] == 2 * geometry.chunks * products


@pytest.mark.parametrize(("kind", "linear"), [("ttm", True), ("history", False)])
def test_a_ttm_grows_linearly_and_a_history_quadratically(kind: str, linear: bool) -> None:
    combiner = combiner_config(kind, width=16, num_outputs=4, heads=2)
    short, long = (forward_flops(model(kind, chunks, combiner=combiner))["combiner"] for chunks in (4, 64))
    assert (long == 16 * short) == linear
    assert linear or long > 20 * short


def test_counting_needs_no_memory_and_leaves_the_random_numbers_alone() -> None:
    network, state = model(), torch.random.get_rng_state()
    forward_flops(network)
    assert torch.equal(state, torch.random.get_rng_state())
