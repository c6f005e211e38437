"""A file with mistakes is refused in a sentence or plays: never a crash, a hang, or a number that is not finite.

300 mutations by default, as many as `FQ_MUTATIONS` says otherwise. They run in a process of their own, whose death or silence
is told from outside; the seed of each fault is named: `python -m tests.fq_env.level_fuzz SEED SEED+1` repeats it.
"""

from __future__ import annotations

from tests import mutations

MUTATIONS = mutations.asked(300)


def test_mutated_files_are_refused_or_play(root):
    outcomes = mutations.outcomes(root, "tests.fq_env.level_fuzz", MUTATIONS)
    faults = {seed: outcome for seed, outcome in outcomes.items() if outcome.startswith("fault")}
    assert not faults, faults
    played = sum(outcome == "played" for outcome in outcomes.values())
    assert 0.1 < played / MUTATIONS < 0.6, "the mutations should leave some files sound, and break most"
