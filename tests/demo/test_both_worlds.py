"""What holds of the demo world in short clips and in long ones: deterministic, balanced, with combinations that only the test split has."""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from mirasol_cli.datasets import demo, demo_long
from mirasol_cli.datasets.demo import World
from mirasol_cli.demo.world import HELD_OUT_LOOKS, HELD_OUT_ORDERS, Question, Scene

SCENES = 3000
TURN_FAMILIES = {"melody", "long", "many", "round"}
"""Families of scenes whose instruments play one after the other."""


@pytest.fixture(scope="module", params=[demo.WORLD, demo_long.WORLD], ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@pytest.fixture(scope="module")
def by_form(world: World) -> dict[str, dict[str, list[Question]]]:
    """Split -> form -> questions, of so many scenes that chance moves no share by much."""
    found: dict[str, dict[str, list[Question]]] = {}
    for split in ("train", "test"):
        found[split] = defaultdict(list)
        for question in world.questions(0, split, world.scenes(0, split, SCENES)):
            found[split][question.form].append(question)
    return found


def test_a_scene_does_not_depend_on_how_many_there_are(world: World) -> None:
    assert world.scenes(3, "train", 40)[:10] == world.scenes(3, "train", 10)
    assert world.scenes(3, "train", 10) != world.scenes(4, "train", 10)
    assert world.scenes(3, "train", 10) != world.scenes(3, "val", 10)
    assert world.questions(3, "val", world.scenes(3, "val", 40)) == world.questions(3, "val", world.scenes(3, "val", 40))


def test_no_answer_of_a_form_is_much_commoner_than_another(by_form: dict) -> None:
    for form, asked in by_form["train"].items():
        answers = Counter(question.answer for question in asked)
        assert max(answers.values()) <= 1.1 * min(answers.values()) + 1, (form, answers)


def test_the_words_of_a_question_do_not_tell_its_answer(by_form: dict) -> None:
    for form, asked in by_form["train"].items():
        seen: dict[str, Counter] = defaultdict(Counter)
        for question in asked:
            seen[question.question][question.answer] += 1
        test = by_form["test"][form]
        guessed = [seen[q.question].most_common(1)[0][0] == q.answer for q in test if q.question in seen]
        answers = Counter(q.answer for q in test)
        others = 1 / max(2, len(answers) - 1)  # an instrument that the question names is never its answer
        assert np.mean(guessed) <= max(others, max(answers.values()) / len(test)) + 0.05, form


def looks_and_orders(scenes: list[Scene]) -> tuple[set, set]:
    """(instrument, colour) of all that is seen; (one, next) of all that play in turn."""
    looks = {(sight.instrument, sight.colour) for scene in scenes for sight in scene.sights}
    turns = [pair for scene in scenes if scene.family in TURN_FAMILIES for pair in pairwise(scene.sounds)]
    return looks, {(one.instrument, following.instrument) for one, following in turns}


def test_held_out_combinations_are_seen_in_the_test_split_only(world: World) -> None:
    for split in ("train", "val"):
        looks, orders = looks_and_orders(world.scenes(0, split, 400))
        assert looks
        assert orders
        assert not looks & HELD_OUT_LOOKS
        assert not orders & HELD_OUT_ORDERS
    looks, orders = looks_and_orders(world.scenes(0, "test", 400))
    assert looks >= HELD_OUT_LOOKS
    assert orders >= HELD_OUT_ORDERS
