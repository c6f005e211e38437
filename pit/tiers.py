"""In which tier of the store an artifact lies, how full the tiers are, and of which artifacts nobody knows how much they are
needed: what the Artifact Store and others both write.
"""

from __future__ import annotations

from pit.compiled import kernel
from pit.layout import TIER_COLD, TIER_GONE, TIER_HOT, TIER_WARM
from pit.members import IN_TIER, UNTOLD, exclude, include
from pit.state import artifact, predecessor, store_of


@kernel
def move(s, i, tier):
    """The artifact of task i lies in `tier` from now on."""
    kept = artifact(s, i)
    o = store_of(s, 0)
    if kept.tier < TIER_GONE:
        o.used[kept.tier] -= kept.size
        exclude(s, IN_TIER + kept.tier, i)
    if tier < TIER_GONE:
        o.used[tier] += kept.size
        include(s, IN_TIER + tier, i)
    kept.tier = tier
    if kept.told != tier:
        o.untold = 1
        include(s, UNTOLD, i)


@kernel
def doubt(s, t):
    """Task t has another state now: how much its inputs are needed must be counted again."""
    if s.any_store == 1:
        for e in range(t.pred_from, t.pred_to):
            artifact(s, predecessor(s, e).task).need = 0


@kernel
def fits(s, tier, size):
    """Whether an artifact of this size fits into a tier that holds nothing else."""
    capacity = store_of(s, 0).capacity[tier]
    return capacity == 0 or size <= capacity


@kernel
def first_tier(s, size):
    """The first tier from hot on into which an artifact of this size fits."""
    if fits(s, TIER_HOT, size):
        return TIER_HOT
    return TIER_WARM if fits(s, TIER_WARM, size) else TIER_COLD
