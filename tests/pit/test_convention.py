"""How kernels call each other: what a helper returns arrives, and it cannot raise; Numba is left as it was found."""

from __future__ import annotations

import gc

import pytest
from numba.core import event, ir
from numba.core.callconv import CPUCallConv
from numba.core.errors import NumbaError
from numba.core.registry import cpu_target

from pit.compiled import apart, entry, kernel


@apart
def parts(x):
    """Several values of several kinds."""
    return x // 2, x > 2, x * 0.5


@apart
def nothing(x):
    """Returns nothing."""
    return


@kernel
def falling(x):
    """The sum of x, x - 1, ... 1: a range that falls, a variable of a loop, a call in a call."""
    total = 0
    for i in range(x, 0, -1):
        total += max(i, min(0, i))
    return total


@entry
def whole(x):
    nothing(x)
    half, more, share = parts(x)
    return 1000 * falling(x) + 100 * half + 10 * more + share


@kernel
def raising(x):
    if x > 2:
        raise ValueError
    return x


@entry
def around(x):
    return raising(x)


def test_what_helpers_return_arrives() -> None:
    assert [whole(x) for x in (1, 3, 4)] == [1000.5, 6111.5, 10212.0]


def test_a_helper_cannot_raise() -> None:
    with pytest.raises(NumbaError, match="Unsupported constraint encountered: raise"):
        around(1)


def test_numba_is_as_it_was_once_all_is_compiled() -> None:
    whole(1)
    with pytest.raises(NumbaError):
        around(1)
    assert gc.get_threshold()[2] < 1_000_000
    assert event.broadcast.__module__ == event.__name__ and ir.Inst._rec_list_vars.__module__ == ir.__name__
    assert type(cpu_target.target_context.call_conv) is CPUCallConv
