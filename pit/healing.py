"""What the Pit does about the health of pools and variants: estimates that follow a change, variants configured anew.

`pit.health` finds what is wrong. Back-off and fallback, the other healing actions, are the agent's and `pit.automation`'s.
"""

from __future__ import annotations

from pit import health
from pit.compiled import kernel
from pit.estimates import adapt, observe_duration
from pit.health import POOL_EASED, POOL_SLOW, ROW_EASED, ROW_SLOW, SLOW
from pit.layout import ADAPTATION, CMD_CONFIGURE, CONFIG_UPDATE, N_VARIANTS, ON
from pit.state import command, signature, variant, vital


@kernel
def emit_configure(s, row):
    """A command: the variant of this row is to be configured anew."""
    out = command(s, s.n_commands)
    s.n_commands += 1
    out.kind = CMD_CONFIGURE
    out.call = -1
    out.task = -1
    out.function = row // N_VARIANTS
    out.variant = row % N_VARIANTS
    out.pool = variant(s, row).pool
    out.copy = -1
    out.model = -1


@kernel
def learn_duration(s, p, row, x):
    """One more observed / hinted ratio x of a variant in pool p, and what it says of their health."""
    if s.watched == 0:
        observe_duration(s, row, x)
        return
    if s.open_healings > 0:
        health.end_healings(s, row, health.row_of(s, p), abs(x / variant(s, row).ratio - 1.0))
    observe_duration(s, row, x)
    changes = health.duration(s, p, row, x)
    if changes != 0 and s.heal == 1:
        heal_estimates(s, p, row, changes)
    health.settle_down(s, p, row)


@kernel
def heal_estimates(s, p, row, changes):
    """Estimates follow a variant, or a pool with all its variants, that has become slow or is slow no more."""
    q = health.row_of(s, p)
    slow_before = changes & POOL_EASED != 0 or (vital(s, q).state & SLOW != 0 and changes & POOL_SLOW == 0)
    if changes & (ROW_SLOW | ROW_EASED) != 0 and not slow_before:
        factor = 1.0
        if changes & ROW_SLOW != 0:
            factor = signature(s, row).factor
            health.note_healing(s, ADAPTATION, row, factor - 1.0)
        rescale(s, row, factor)
    if changes & (POOL_SLOW | POOL_EASED) != 0:
        factor = 1.0
        if changes & POOL_SLOW != 0:
            factor = signature(s, q).factor
            health.note_healing(s, ADAPTATION, q, factor - 1.0)
        for r in range(N_VARIANTS * s.n_functions):
            v = variant(s, r)
            if v.usable == 1 and v.pool == p and vital(s, r).state & SLOW == 0:
                rescale(s, r, factor)


@kernel
def rescale(s, row, factor):
    """The estimate of a variant becomes `factor` times the calm one."""
    h = vital(s, row)
    adapt(s, row, h.calm * factor, factor / h.scale)


@kernel
def mend(s, row):
    """A variant whose API has changed is configured anew, if the Pit may have that done and it is not under way."""
    v = variant(s, row)
    if s.heal == 1 and s.status == ON and v.mending == 0:
        v.mending = 1
        s.n_mending += 1
        health.note_healing(s, CONFIG_UPDATE, row, health.chance(s, row))
        emit_configure(s, row)


@kernel
def configured(s, row):
    """A variant was configured anew."""
    v = variant(s, row)
    s.n_mending -= v.mending
    v.mending = 0
    if s.watched == 1:
        health.configured(s, row)


@kernel
def output_changed(s, row):
    """Outputs of a variant do not look as before."""
    if s.watched == 1 and health.output_changed(s, row):
        mend(s, row)
