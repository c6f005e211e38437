"""The verifier: only what is true, and no worse than the rule, is learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.errors import ExperimentError
from experiments.evaluate import CALIBRATED, Referee
from experiments.recipes import supervised, teacher, trajectories
from experiments.recipes.trajectories import Trajectories
from experiments.recipes.verifier import BEATEN, BELOW, ILLEGAL, KEPT, UNCONFIRMED, UNENDED
from fq_env.engine import Engine
from fq_env.level import load_level
from fq_env.players import lookahead
from pit.layout import WAIT
from tests.experiments.trajectories import INSTANCES, replayed


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def played() -> Trajectories:
    """Six episodes of level 11, played by a short lookahead."""
    level = load_level(11)
    rule = teacher.base_players(Referee(level, 4), [CALIBRATED])[CALIBRATED]
    return teacher.play(level, lookahead(rule, 2), 0, INSTANCES, "full")


def test_what_is_true_is_kept_with_what_was_seen(played: Trajectories) -> None:
    found = replayed(played, at_least_rule=False)
    assert found.verdicts.tolist() == [KEPT] * 6
    assert found.counts()[KEPT] == 6
    of = found.examples
    assert of.frames.size == len(of.actions) == played.lengths.sum()
    for k in range(6):
        mine = of.episodes == k
        np.testing.assert_array_equal(of.actions[mine], played.chosen(np.array([k])).actions)
        engine = Engine(11, 1, exposure="full")
        engine.reset(split="train", instances=[int(INSTANCES[k])])
        assert found.gathered()[k] == pytest.approx(played.totals[k] - engine.phi0[0], abs=1e-6)


def test_what_is_false_is_refused(played: Trajectories) -> None:
    """A score one bit too high, an illegal action, one that does not exist, an end too early and one too late."""
    wrong = played.chosen(np.arange(6))
    first = wrong.starts
    wrong.totals[0] = np.nextafter(wrong.totals[0], 2.0)
    engine = Engine(11, 6, exposure="full", autoreset="disabled")
    engine.reset(split="train", instances=INSTANCES.tolist())
    wrong.actions[first[1]] = np.flatnonzero(~engine.masks[1])[0]
    wrong.actions[first[2]] = 5000
    short = np.ones(len(wrong.actions), bool)
    short[first[3] + wrong.lengths[3] - 1] = False
    wrong.expected = wrong.expected[np.repeat(short, wrong.counts)]
    wrong.actions, wrong.advantages, wrong.counts = wrong.actions[short], wrong.advantages[short], wrong.counts[short]
    wrong.lengths[3] -= 1
    found = replayed(wrong, at_least_rule=False)
    assert found.verdicts.tolist() == [UNCONFIRMED, ILLEGAL, ILLEGAL, UNENDED, KEPT, KEPT]
    assert replayed(wrong, at_least_rule=False, believe=True).verdicts.tolist() == [
        KEPT,
        ILLEGAL,
        ILLEGAL,
        UNENDED,
        KEPT,
        KEPT,
    ]


def test_scores_of_other_actions_than_the_legal_ones_are_refused(played: Trajectories) -> None:
    wrong = played.chosen(np.array([3, 4, 5]))
    told = wrong.starts[1] + int(np.flatnonzero(wrong.counts[wrong.starts[1] :])[0])  # a decision of the second
    at = int(wrong.counts[:told].sum())
    wrong.expected = np.delete(wrong.expected, at)
    wrong.counts[told] -= 1
    for believe in (False, True):
        assert replayed(wrong, at_least_rule=False, believe=believe).verdicts.tolist() == [KEPT, UNCONFIRMED, KEPT]


def test_what_actions_are_expected_to_bring_is_told_action_by_action(played: Trajectories) -> None:
    """Spans of the legal actions, zero on average, largest where the teacher went; the episodes may be put in any order."""
    turned = played.chosen(np.array([5, 0]))
    found = replayed(turned, at_least_rule=False)
    of = supervised.gathered([found, found], "expected")
    size = len(turned.actions)
    assert len(of.actions) == 2 * size and (of.firsts >= 0).sum() == 2 * (turned.counts > 0).sum() > 0
    once, again = of.firsts[:size], of.firsts[size:]
    np.testing.assert_array_equal(again, np.where(once >= 0, once + len(turned.expected), -1))
    squares = 0.0
    for f in np.flatnonzero(of.firsts >= 0).tolist():
        legal = np.flatnonzero(np.unpackbits(of.frames.words[f].view(np.uint8), bitorder="little"))
        each = of.expected[of.firsts[f] : of.firsts[f] + len(legal)]
        assert abs(each.sum()) < 1e-4 and legal[each.argmax()] == of.actions[f]
        squares += float((each**2).sum())
    assert squares / (of.firsts >= 0).sum() == pytest.approx(1.0, rel=1e-4)
    assert (supervised.gathered([found], "chosen").firsts == -1).all()


def test_without_the_mask_illegal_actions_are_worth_what_they_become(played: Trajectories) -> None:
    """Frames without masks have a number for each possible action, the legal ones' their own."""
    seen, blind = (replayed(played, at_least_rule=False, masks=masks).examples for masks in (True, False))
    np.testing.assert_array_equal(seen.actions, blind.actions)
    np.testing.assert_array_equal(seen.firsts >= 0, blind.firsts >= 0)
    bits = [np.unpackbits(of.frames.words.view(np.uint8), axis=1, bitorder="little").astype(bool) for of in (seen, blind)]
    more = 0
    for f in np.flatnonzero(seen.firsts >= 0).tolist():
        legal, possible = (np.flatnonzero(rows[f]) for rows in bits)
        known = dict(zip(legal.tolist(), seen.expected[seen.firsts[f] :], strict=False))
        instead = known.get(WAIT, known[int(legal[0])])
        told = blind.expected[blind.firsts[f] : blind.firsts[f] + len(possible)]
        assert told.tolist() == [known.get(action, instead) for action in possible.tolist()]
        more += len(possible) - len(legal)
    assert more > 0 and len(blind.expected) == len(seen.expected) + more


def test_what_is_below_the_rule_on_the_same_instance_is_refused() -> None:
    from fq_env.players import PLAYERS

    level = load_level(11)
    rule = teacher.base_players(Referee(level, 4), [CALIBRATED])[CALIBRATED]
    of_rule = teacher.play(level, rule, 0, INSTANCES, "full")
    of_chance = teacher.play(level, PLAYERS["random"], 1, INSTANCES, "full")
    assert (of_chance.totals < of_rule.totals).all()
    both = replayed(trajectories.joined([of_rule, of_chance]))
    assert both.verdicts.tolist() == [KEPT] * 6 + [BELOW] * 6
    np.testing.assert_array_equal(both.rule, np.tile(of_rule.totals, 2))
    twice = replayed(trajectories.joined([of_rule, of_chance]), at_least_rule=False)
    assert twice.verdicts.tolist() == [KEPT] * 6 + [BEATEN] * 6


def test_a_file_of_trajectories_is_what_was_saved_or_refused(tmp_path: Path, played: Trajectories) -> None:
    played.save(tmp_path / "a.npz")
    again = trajectories.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.actions, played.actions)
    np.testing.assert_array_equal(again.totals, played.totals)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    with pytest.raises(ExperimentError, match=r"a\.npz"):
        trajectories.load(tmp_path / "a.npz")
