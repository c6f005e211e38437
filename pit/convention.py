"""How kernels call each other: a helper hands back what it returns, and no error.

Numba's own functions return a status, write their result through a pointer, and each caller looks whether there was an error:
a quarter of the code that LLVM gets, for errors that kernels do not have. Whoever is not a helper is called as always.
This module must know nothing of what kernels do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils
from numba.core.callconv import CPUCallConv
from numba.core.cpu import CPUContext
from numba.core.lowering import Lower
from numba.core.typed_passes import NativeLowering

_helpers: set[str] = set()  # their names in LLVM


class _Status(NamedTuple):
    """Of a call that cannot fail."""

    is_error: Any = cgutils.false_bit
    is_none: Any = cgutils.false_bit


class Convention(CPUCallConv):
    """Numba's calling convention, but for functions that are helpers."""

    def helper_type(self, descriptor: Any) -> Any:
        """The LLVM type of a helper."""
        arguments = self._get_arg_packer(descriptor.argtypes).argument_types
        return ir.FunctionType(self.get_return_type(descriptor.restype).pointee, list(arguments))

    def get_arguments(self, function: Any) -> Any:
        return function.args if function.name in _helpers else super().get_arguments(function)

    def return_value(self, builder: Any, value: Any) -> None:
        if builder.function.name in _helpers:
            builder.ret(value)
        else:
            super().return_value(builder, value)

    def return_user_exc(self, builder: Any, *args: Any, **options: Any) -> None:
        if builder.function.name in _helpers:
            builder.unreachable()  # such as a `range` whose step is 0
        else:
            super().return_user_exc(builder, *args, **options)

    def return_status_propagate(self, builder: Any, status: Any) -> None:
        if builder.function.name not in _helpers and not isinstance(status, _Status):
            super().return_status_propagate(builder, status)

    def call_function(
        self, builder: Any, callee: Any, result_type: Any, argument_types: Any, args: Any, attrs: Any = None
    ) -> Any:
        if callee.name not in _helpers:
            return super().call_function(builder, callee, result_type, argument_types, args, attrs)
        packed = self._get_arg_packer(argument_types).as_arguments(builder, args)
        value = builder.call(callee, list(packed))
        return _Status(), self.context.get_returned_value(builder, result_type, value)


_declare = CPUContext.declare_function


def declare(context: Any, module: Any, descriptor: Any) -> Any:
    """The function of that descriptor in an LLVM module, for whoever defines or calls it."""
    if descriptor.mangled_name not in _helpers:
        return _declare(context, module, descriptor)
    kind = Convention(context).helper_type(descriptor)
    return cgutils.get_or_insert_function(module, kind, descriptor.mangled_name)


class _HelperLower(Lower):
    """Numba's way from its code to LLVM's, for helpers: no value that a variable had must be freed."""

    def __init__(self, context: Any, library: Any, descriptor: Any, *args: Any, **options: Any) -> None:
        _helpers.add(descriptor.mangled_name)
        super().__init__(context, library, descriptor, *args, **options)

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        if argidx is None and name not in self._singly_assigned_vars:
            self._alloca_var(name, self.typeof(name))
            self.builder.store(value, self.getvar(name))
        else:
            super().storevar(value, name, argidx)


class HelperLowering(NativeLowering):
    """Numba's pass that makes LLVM's code of a function, for helpers."""

    lowering_class = _HelperLower
