"""One environment's step for Python: one call into compiled code, which writes straight into what the caller gets.

Beside a step of a small level two new NumPy arrays are dear. What is handed out are therefore views into blocks of a few
rows, and a block is written again only when nobody holds any part of it. This module knows no rule of the game.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from sys import getrefcount
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fq_env.engine import Engine, data_address
from fq_env.state import byte_at, engine_at, float_at, integer_at
from pit.compiled import entry
from pit.layout import N_ACTIONS, N_OBSERVATION
from pit.memory import copy_bytes

Give = Callable[[], np.ndarray]
Row = tuple[Give, Give, int]  # give the observation (512,) float32 and the mask (128,) bool at an address, once it is written

_ROWS = 2  # of a block: few, for who keeps one view of it keeps the memory of all, and caches hold it
_COPIES = 32  # blocks' worth of copies before a block that somebody holds is replaced
_OBS_BYTES = 4 * N_OBSERVATION


@intrinsic
def _call(typingctx: Any, function: Any, address: Any, operation: Any) -> Any:
    """Calls the compiled `engine` by its address; linked in, the whole kernel would be compiled once more."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        function_type = ir.FunctionType(i64, [i64, i64])
        return builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])

    return types.int64(function, address, operation), codegen


@entry
def operate(function: Any, address: Any, operation: Any, action: Any, row: Any) -> Any:
    """One operation on the only environment of the engine at `address`, shown at `row`; reward, terminated, truncated."""
    e = engine_at(address)
    own = e.obs
    e.obs = row
    e.fresh = 1
    integer_at(e.actions).x = action
    _call(function, address, operation)
    e.obs = own
    copy_bytes(row + _OBS_BYTES, e.masks, N_ACTIONS)
    return float_at(e.rewards).x, byte_at(e.terminated).x == 1, byte_at(e.truncated).x == 1


operate.targetoptions["nogil"] = False  # giving up the interpreter's lock would cost 5 % of the whole step


def bind(engine: Engine) -> tuple[Callable[[int, int, int, Any, int], tuple[float, bool, bool]], int, int]:
    """`operate`, past Numba's dispatcher, and its first two arguments for an engine with n = 1; its own if it has one."""
    own = getattr(engine, "operate", None)
    if own is not None:
        return own, 0, engine._address
    compiled = engine._compiled
    function = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)
    return operate.compile((types.int64,) * 5), function, engine._address


class _Block:
    """Memory for `_ROWS` rows, given as new views (never the same twice, for somebody may change a view's flags) or copies."""

    def __init__(self, copies: bool = False) -> None:
        self._memory = np.empty((_ROWS, _OBS_BYTES + N_ACTIONS), np.uint8)
        start, stride = data_address(self._memory), self._memory.strides[0]
        observations, masks = self._memory[:, :_OBS_BYTES].view(np.float32), self._memory[:, _OBS_BYTES:].view(np.bool_)
        self.rows: list[Row] = [
            (obs.copy, mask.copy, address) if copies else (obs.view, mask.view, address)
            for obs, mask, address in zip(observations, masks, range(start, start + _ROWS * stride, stride), strict=True)
        ]
        del observations, masks
        self._held_by_itself = getrefcount(self._memory)

    def held(self) -> bool:
        """Whether somebody holds a view of it: NumPy's views, and views of views, hold the array that owns the memory."""
        return getrefcount(self._memory) > self._held_by_itself


def _free_blocks() -> Iterator[list[Row]]:
    block, other = _Block(), _Block()
    copies = _Block(copies=True).rows * _COPIES
    while True:
        block, other = other, block
        if block.held():
            yield copies  # cheaper than a new block for each few rows, if all of them are kept
            if block.held():
                block = _Block()
        yield block.rows


def free_rows() -> Iterator[Row]:
    """Rows without end; none is part of what somebody was given and still holds."""
    return chain.from_iterable(_free_blocks())
