"""How kernels see records in raw memory: a row is a reference into a table at an address, a lane an array inside a row.

Each field is told apart from all others to LLVM (TBAA): a store to one leaves what is known of the others. So no two
fields may share memory, and what is read as bytes, float32 or float64 is never a field. Indices are never negative.
This module must know nothing of what the records mean.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, typing
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_builtin, lower_getattr_generic, lower_setattr_generic
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global
from numba.extending import intrinsic

LINE = 64  # bytes of a cache line


class Row(types.Type):
    """A reference to a record in memory.

    Numba's own records would do, but for their names, which spell out every field, and for what LLVM learns of them.
    """

    def __init__(self, number: int, dtype: np.dtype[Any]) -> None:
        self.label, self.size = f"row{number}", dtype.itemsize
        super().__init__(self.label)
        self.fields = {name: (_kind(f"{self.label}.{name}", info[0]), info[1]) for name, info in (dtype.fields or {}).items()}


class Lane(types.Type):
    """A reference to an array of fixed shape inside a record; its elements are numbers or rows."""

    def __init__(self, label: str, dtype: np.dtype[Any]) -> None:
        element, self.shape = dtype.subdtype  # type: ignore[misc]
        self.label, self.step = label, element.itemsize
        super().__init__(label)
        self.element = _kind(label, element)


for _class in (Row, Lane):
    register_default(_class)(models.OpaqueModel)  # an address of bytes


@functools.cache
def _row(dtype: np.dtype[Any]) -> Row:
    return Row(next(_numbers), dtype)


_numbers = iter(range(1000))


def _kind(label: str, dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        return Lane(label, dtype)
    return _row(dtype) if dtype.fields else numba.from_dtype(dtype)


# --------------------------------------------------------------------------- access
def _at(builder: Any, base: Any, offset: Any) -> Any:
    """The address `offset` bytes behind another."""
    return builder.gep(base, [offset], inbounds=True)


def _tagged(builder: Any, access: Any, label: str) -> Any:
    """Tells LLVM that a load or store touches nothing but memory of this name."""
    module = builder.module
    tags = module.__dict__.setdefault("memory_tags", {})
    if label not in tags:
        root = module.add_metadata(["memory"])
        name = module.add_metadata([label, root, ir.Constant(ir.IntType(64), 0)])
        tags[label] = module.add_metadata([name, name, ir.Constant(ir.IntType(64), 0)])
    access.set_metadata("tbaa", tags[label])
    return access


def _read(context: Any, builder: Any, kind: Any, where: Any, label: str) -> Any:
    """What lies at an address: a number, or a reference where rows and lanes lie."""
    if isinstance(kind, Row | Lane):
        return where
    return _tagged(builder, builder.load(builder.bitcast(where, context.get_data_type(kind).as_pointer())), label)


def _write(context: Any, builder: Any, kind: Any, where: Any, value: Any, given: Any, label: str) -> None:
    value = context.cast(builder, value, given, kind)
    _tagged(builder, builder.store(value, builder.bitcast(where, context.get_data_type(kind).as_pointer())), label)


@infer_getattr
class _RowAttribute(AttributeTemplate):
    key = Row

    def generic_resolve(self, row: Row, name: str) -> Any:
        return row.fields[name][0] if name in row.fields else None


@lower_getattr_generic(Row)
def _get_field(context: Any, builder: Any, row: Row, value: Any, name: str) -> Any:
    kind, offset = row.fields[name]
    return _read(context, builder, kind, _at(builder, value, ir.IntType(64)(offset)), f"{row.label}.{name}")


@lower_setattr_generic(Row)
def _set_field(context: Any, builder: Any, signature: Any, args: Any, name: str) -> None:
    row, given = signature.args
    kind, offset = row.fields[name]
    _write(context, builder, kind, _at(builder, args[0], ir.IntType(64)(offset)), args[1], given, f"{row.label}.{name}")


def _is_index(lane: Any, index: Any) -> bool:
    if not isinstance(lane, Lane):
        return False
    parts = index if isinstance(index, types.BaseTuple) else (index,)
    return len(parts) == len(lane.shape) and all(isinstance(x, types.Integer) for x in parts)


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return typing.signature(args[0].element, *args) if _is_index(*args) else None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return typing.signature(types.none, *args[:2], args[0].element) if _is_index(*args[:2]) else None


def _element(context: Any, builder: Any, lane: Lane, base: Any, index_type: Any, index: Any) -> Any:
    """The address of an element of a lane."""
    several = isinstance(index_type, types.BaseTuple)
    parts = cgutils.unpack_tuple(builder, index) if several else [index]
    kinds = list(index_type) if several else [index_type]
    where = ir.IntType(64)(0)
    for part, kind, size in zip(parts, kinds, lane.shape, strict=True):
        where = builder.add(builder.mul(where, ir.IntType(64)(size)), context.cast(builder, part, kind, types.int64))
    return _at(builder, base, builder.mul(where, ir.IntType(64)(lane.step)))


@lower_builtin(operator.getitem, Lane, types.Any)
def _get_item(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    lane, index = signature.args
    return _read(context, builder, lane.element, _element(context, builder, lane, args[0], index, args[1]), lane.label)


@lower_builtin(operator.setitem, Lane, types.Any, types.Any)
def _set_item(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    lane, index, given = signature.args
    where = _element(context, builder, lane, args[0], index, args[1])
    _write(context, builder, lane.element, where, args[2], given, lane.label)
    return context.get_dummy_value()


# --------------------------------------------------------------------------- rows
def record_at(dtype: np.dtype[Any]) -> Any:
    """A kernel function `address -> row` of that dtype (a reference, no copy)."""
    row = _row(dtype)

    @intrinsic
    def at(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _pointer(context, builder, signature, args, 0)

        return row(address), codegen

    return at


def table(owner: np.dtype[Any], offset_field: str, dtype: np.dtype[Any]) -> Any:
    """A kernel function `(owner row, index) -> row` of a table that lies `offset_field` bytes behind its owner."""
    row = _row(dtype)
    position = owner.fields[offset_field][1]  # type: ignore[index]

    @intrinsic
    def at(typingctx: Any, record: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            i64 = ir.IntType(64)
            where = _at(builder, args[0], i64(position))
            offset = builder.load(builder.bitcast(where, ir.IntType(32).as_pointer()))
            offset.set_metadata("invariant.load", builder.module.add_metadata([]))  # no kernel moves a table
            base = _at(builder, args[0], builder.sext(offset, i64))
            return _at(builder, base, builder.mul(_number(context, builder, signature, args, 1), i64(row.size)))

        return row(record, index), codegen

    return at


@intrinsic
def position(typingctx: Any, lane: Any, n: Any, value: Any) -> Any:
    """The index of the first of the first n elements of a lane that equals a value; n (at most 31) if none does."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (size,), i32 = lane.shape, ir.IntType(32)
        kind = ir.VectorType(context.get_data_type(lane.element), size)
        elements = _tagged(builder, builder.load(builder.bitcast(args[0], kind.as_pointer()), align=lane.step), lane.label)
        wanted = builder.insert_element(ir.Constant(kind, ir.Undefined), builder.trunc(args[2], kind.element), i32(0))
        wanted = builder.shuffle_vector(wanted, wanted, ir.Constant(ir.VectorType(i32, size), [0] * size))
        equal = builder.bitcast(builder.icmp_signed("==", elements, wanted), ir.IntType(size))
        end = builder.shl(i32(1), builder.trunc(_number(context, builder, signature, args, 1), i32))
        return builder.zext(builder.cttz(builder.or_(builder.zext(equal, i32), end), ir.IntType(1)(1)), ir.IntType(64))

    return types.int64(lane, n, types.int64), codegen


@intrinsic
def address_of(typingctx: Any, row: Any) -> Any:
    """The address of a row, as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(row), codegen


@intrinsic
def copy_record(typingctx: Any, target: Any, source: Any) -> Any:
    """Copies one row over another of the same type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, *args, context.get_constant(types.int64, target.size), 1)
        return context.get_dummy_value()

    return types.void(target, source), codegen


# --------------------------------------------------------------------------- raw memory
def _number(context: Any, builder: Any, signature: Any, args: Any, k: int) -> Any:
    """Argument k as int64."""
    return context.cast(builder, args[k], signature.args[k], types.int64)


def _pointer(context: Any, builder: Any, signature: Any, args: Any, k: int) -> Any:
    """Argument k, an address, as a pointer to bytes."""
    return builder.inttoptr(_number(context, builder, signature, args, k), cgutils.voidptr_t)


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    """Copies `size` bytes from one address to another."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, fro = (_pointer(context, builder, signature, args, k) for k in (0, 1))
        cgutils.raw_memcpy(builder, to, fro, _number(context, builder, signature, args, 2), 1)
        return context.get_dummy_value()

    return types.void(target, source, size), codegen


@intrinsic
def clear(typingctx: Any, address: Any, size: Any) -> Any:
    """Sets `size` bytes behind an address to zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature, args, 0)
        cgutils.memset(builder, pointer, _number(context, builder, signature, args, 1), 0)
        return context.get_dummy_value()

    return types.void(address, size), codegen


def fetcher(size: int) -> Any:
    """A kernel function `address` that asks the processor for the `size` bytes there, which need not exist; nothing waits."""

    @intrinsic
    def fetch(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            start = _pointer(context, builder, signature, args, 0)
            i32, i64 = ir.IntType(32), ir.IntType(64)
            kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
            prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
            for offset in range(0, size, LINE):
                builder.call(prefetch, [builder.gep(start, [i64(offset)]), i32(0), i32(3), i32(1)])  # to read, soon and often
            return context.get_dummy_value()

        return types.void(address), codegen

    return fetch


def _reader(kind: Any, label: str, doc: str) -> Any:
    """A kernel function `(address, index)` that reads one number of an array, as float64."""

    def read(typingctx: Any, address: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            where = _entry(context, builder, signature, args, kind.bitwidth // 8)
            value = builder.load(builder.bitcast(where, context.get_data_type(kind).as_pointer()))
            return context.cast(builder, _tagged(builder, value, label), kind, types.float64)

        return types.float64(address, index), codegen

    read.__doc__ = doc
    return intrinsic(read)


def _writer(kind: Any, label: str, doc: str) -> Any:
    """A kernel function `(address, index, value)` that writes one number of an array."""

    def write(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            where = _entry(context, builder, signature, args, kind.bitwidth // 8)
            _write(context, builder, kind, where, args[2], signature.args[2], label)
            return context.get_dummy_value()

        return types.void(address, index, value), codegen

    write.__doc__ = doc
    return intrinsic(write)


def _entry(context: Any, builder: Any, signature: Any, args: Any, size: int) -> Any:
    """Pointer to an entry of an array: the first two arguments are an address and an index."""
    offset = builder.mul(_number(context, builder, signature, args, 1), ir.IntType(64)(size))
    return _at(builder, _pointer(context, builder, signature, args, 0), offset)


put: Callable[..., None] = _writer(types.float32, "float32", "Writes a float64 as float32 number `index` behind an address.")
float32_at = _reader(types.float32, "float32", "The float32 number `index` behind an address, as float64.")
float64_at = _reader(types.float64, "float64", "The float64 number `index` behind an address.")
get_byte = _reader(types.uint8, "bytes", "Byte `index` behind an address.")
put_byte: Callable[..., None] = _writer(types.uint8, "bytes", "Writes an integer as byte `index` behind an address.")


@intrinsic
def put_word(typingctx: Any, address: Any, value: Any) -> Any:
    """Writes a uint64 as eight bytes at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = builder.bitcast(_pointer(context, builder, signature, args, 0), args[1].type.as_pointer())
        _tagged(builder, builder.store(args[1], where, align=1), "bytes")
        return context.get_dummy_value()

    return types.void(address, types.uint64), codegen


@intrinsic
def lowest_bit(typingctx: Any, word: Any) -> Any:
    """The index of the lowest bit that is set in a uint64 other than 0, as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@intrinsic
def bits_of(typingctx: Any, value: Any) -> Any:
    """The 64 bits of a float64, as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), codegen
