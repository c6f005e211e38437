"""How kernels are compiled and cached, and how they see records in raw memory.

Numba's cache does not notice a change in an imported kernel, so its folder is named by a digest of all kernel
sources. Kernels take addresses: a table is a run of records at an address, and a row is a reference into it.
This module must know nothing of what the records mean.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numba
import numpy as np
from llvmlite.binding import Linkage, create_pass_builder, create_pipeline_tuning_options, parse_assembly, set_option
from numba import types
from numba.core import base, cgutils, event, ir
from numba.core import config as numba_config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.cpu import CPUContext
from numba.core.interpreter import Interpreter
from numba.core.ir_utils import build_definitions
from numba.core.registry import cpu_target
from numba.core.ssa import reconstruct_ssa
from numba.core.transforms import canonicalize_cfg
from numba.core.typed_passes import NoPythonBackend, NopythonTypeInference, PreLowerStripPhis
from numba.core.untyped_passes import FixupArgs

from pit.convention import Convention, HelperLowering, declare

if platform.machine() in ("x86_64", "AMD64"):
    # What a kernel selects from stays a selection: as a branch, random events would mislead the processor half of the time.
    set_option("", "--x86-cmov-converter=false")
_HOUSE = Path(__file__).resolve().parent.parent


@functools.cache
def cache_folder() -> Path | None:
    """The folder for compiled kernels, named by a digest of their sources; None if no folder can be written."""
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {sys.version}".encode())
    for package in ("pit", "fq_env", "conductor"):
        for source in sorted((_HOUSE / package).glob("*.py")):
            text = source.read_bytes()
            if package == "pit" or any(b"from pit.%s import" % name in text for name in (b"compiled", b"memory")):
                digest.update(source.name.encode() + b"\0" + text)
    root = (
        os.environ.get("FQ_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    )
    for parent in (Path(root) / "function-quest", Path(tempfile.gettempdir()) / f"function-quest-{os.getuid()}"):
        folder = parent / digest.hexdigest()[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


@functools.cache
def announce(entry_name: str) -> None:
    """Tells the user, once, that an entry will be compiled now because this machine has no compiled one yet."""
    folder = cache_folder()
    if folder is None or not any(folder.rglob(f"*.{entry_name}-*.nbi")):
        print(
            "Function Quest compiles its kernels for this machine (once, about ten seconds) ...", file=sys.stderr, flush=True
        )


def _jit(function: Callable[..., Any], cached: bool, **options: Any) -> Any:
    before = numba_config.CACHE_DIR
    folder = cache_folder() if cached else None
    try:
        numba_config.CACHE_DIR = str(folder) if folder else before
        return numba.njit(nogil=True, error_model="numpy", _nrt=False, cache=folder is not None, **options)(function)
    finally:
        numba_config.CACHE_DIR = before


class _Inlined(JITCodeLibrary):
    """The code of a helper: kept as LLVM IR for the entry that links it, never optimised or made executable on its own.

    `attributes` tell LLVM whether to compile it into its callers; without them it sees for itself.

    Numba would link each helper with all that it calls and optimise the whole, again and again up the call tree: two
    thirds of the compile time, for machine code that nobody runs.
    """

    _whole: Any = None
    attributes: tuple[str, ...] = ()

    def add_ir_module(self, ir_module: Any) -> None:
        for function in ir_module.functions:
            if function.blocks:
                for attribute in self.attributes:
                    function.attributes.add(attribute)
        self._final_module = parse_assembly(cgutils.normalize_ir_text(str(ir_module)))

    def finalize(self) -> None:
        self._finalized = True

    def _get_module_for_linking(self) -> Any:
        """The helper with all that it calls, for a library that is no `_Whole` (a parallel loop's body)."""
        if self._whole is None:
            self._whole = parse_assembly("")
            _link(self._whole, [self], Linkage.linkonce_odr)
        return self._whole

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    @property
    def codegen(self) -> Any:
        return _NoEnvironment()  # asked for only to set the environment of code that does not exist


class _NoEnvironment:
    def set_env(self, env_name: str, env: Any) -> None:
        pass


def _closure(libraries: list[Any]) -> list[Any]:
    """These libraries and all that their helpers link, each once."""
    found: dict[int, Any] = {}
    todo = list(libraries)
    while todo:
        library = todo.pop()
        if id(library) not in found:
            found[id(library)] = library
            if isinstance(library, _Inlined):
                todo += library._linking_libraries
    return list(found.values())


def _link(module: Any, libraries: list[Any], linkage: Linkage) -> None:
    """Puts all that these libraries and their helpers define into a module, with that linkage.

    Helpers are first linked pair by pair, for LLVM looks through both modules each time.
    """
    own = {function.name for function in module.functions if not function.is_declaration}
    found = _closure(libraries)
    helpers = [library._final_module.clone() for library in found if isinstance(library, _Inlined)]
    while len(helpers) > 1:
        for a, b in zip(helpers[::2], helpers[1::2], strict=False):
            a.link_in(b)
        helpers = helpers[::2]
    for helper in helpers:
        module.link_in(helper)
    for library in found:
        if not isinstance(library, _Inlined):
            module.link_in(library._get_module_for_linking(), preserve=True)
    for function in module.functions:
        if not function.is_declaration and function.name not in own:
            function.linkage = linkage


class _Whole(JITCodeLibrary):
    """The code of an entry: the helpers that it links become its own, so that LLVM inlines and drops them as it sees fit."""

    def finalize(self) -> None:
        _link(self._final_module, self._linking_libraries, Linkage.private)
        # One plain run of LLVM's pipeline: the loops here turn a few times, so unrolling and vectorising them only adds code.
        options = create_pipeline_tuning_options(speed_level=3)
        options.loop_unrolling = options.loop_vectorization = options.loop_interleaving = options.slp_vectorization = False
        builder = create_pass_builder(self._codegen._tm, options)
        builder.getModulePassManager().run(self._final_module, builder)
        self._final_module.verify()
        self._finalize_final_module()


def _variables(statement: Any, value: Any) -> list[Any]:
    """The variables in a part of a statement, as Numba's own method finds them, with a call for each part of a part."""
    found: list[Any] = []
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,):
        kind = type(part)
        if kind is ir.Var:
            found.append(part)
        elif kind in (dict, list, tuple):
            found += _variables(statement, part)
        elif issubclass(kind, ir.Inst):
            found += part.list_vars()
    return found


@contextmanager
def _memory() -> Iterator[None]:
    """Meanwhile, Numba remembers what it would find out thousands of times, and nobody goes through all objects for garbage,
    of which there is little, nor is told of each step: a third of the compile time.

    That is: what operators on types and their attributes give, how large and how named types are, what functions that write
    code take, and which registries there are.
    """
    target, typing = cpu_target.target_context, cpu_target.typing_context
    resolve = types.Function.get_call_type
    resolved: dict[Any, Any] = {}

    def resolve_once(function: Any, context: Any, args: Any, kws: Any) -> Any:
        if kws or not all(isinstance(kind, types.Type) for kind in args):
            return resolve(function, context, args, kws)
        key = function, tuple(args)
        if key not in resolved:
            resolved[key] = resolve(function, context, args, kws)
        return resolved[key]

    target.refresh()
    meanwhile = (
        (types.Function, "get_call_type", resolve_once),
        (typing, "resolve_getattr", functools.cache(typing.resolve_getattr)),
        (CPUContext, "call_conv", property(Convention)),
        (CPUContext, "declare_function", declare),
        (base, "_has_loc", functools.cache(base._has_loc)),
        (ir.Inst, "_rec_list_vars", _variables),
        (event, "broadcast", lambda happened: None),
        (types.Record, "__repr__", functools.cache(types.Record.__repr__)),
        (target, "get_abi_sizeof", functools.cache(target.get_abi_sizeof)),
        (target, "load_additional_registries", lambda: [target.install_registry(known) for known in [*target._registries]]),
    )
    with ExitStack() as undo:
        for owner, name, method in meanwhile:
            if name in vars(owner):
                undo.callback(setattr, owner, name, vars(owner)[name])
            else:
                undo.callback(delattr, owner, name)
            setattr(owner, name, method)
        undo.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*gc.get_threshold()[:2], 1_000_000)
        yield


class _ParallelCompiler(Compiler):
    """Numba's compiler, which meets helpers on its way."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        with _memory():
            return super().compile_extra(func)


class _EntryCompiler(_ParallelCompiler):
    """Numba's compiler, with `_Whole` as the library of the function."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        self.state.library = _Whole(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)


class _HelperPasses:
    """The passes of Numba that a helper needs, without what watches over them.

    Left out is what helpers do not have: closures, `with`, `f(*a)`, `literally`, inlined overloads, generators, objects to be
    freed when nobody uses them any more.
    """

    pipeline_name = "helper"
    exec_times: ClassVar[dict[str, Any]] = {}

    def run(self, state: Any) -> None:
        state.type_annotation = None
        translator = Interpreter(state.func_id)
        translator.post_process = lambda rewrites, code: code  # they look for `with` and `f(*a)`
        state.func_ir = translator.interpret(state.bc)
        FixupArgs().run_pass(state)
        state.func_ir.generator_info = None
        state.func_ir.blocks = canonicalize_cfg(state.func_ir.blocks)
        state.func_ir = reconstruct_ssa(state.func_ir)
        NopythonTypeInference().run_pass(state)
        state.func_ir = PreLowerStripPhis()._strip_phi_nodes(state.func_ir)
        state.func_ir._definitions = build_definitions(state.func_ir.blocks)
        HelperLowering().run_pass(state)
        NoPythonBackend().run_pass(state)


class _HelperCompiler(Compiler):
    """Numba's compiler, with `_Inlined` as the library of the function."""

    attributes: tuple[str, ...] = ()

    def define_pipelines(self) -> list[Any]:
        return [_HelperPasses()]

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        self.state.library = _Inlined(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.attributes = self.attributes
        return super().compile_extra(func)


class _InsideCompiler(_HelperCompiler):
    attributes = ("alwaysinline",)


class _ApartCompiler(_HelperCompiler):
    attributes = ("noinline",)


class _RareCompiler(_HelperCompiler):
    attributes = ("noinline", "cold")


def kernel(function: Callable[..., Any]) -> Any:
    """A helper: it can be called from kernels only, and is compiled into whichever entry calls it.

    Integers arrive as int64, whatever their width and even if they are constants: one compile instead of one for each.
    """
    return _helper(function, _HelperCompiler)


def inside(function: Callable[..., Any]) -> Any:
    """A helper that is compiled into each of its callers, although there are several."""
    return _helper(function, _InsideCompiler)


def apart(function: Callable[..., Any]) -> Any:
    """A helper that stays a function of its own, so that what its callers do before and after it stays short."""
    return _helper(function, _ApartCompiler)


def rare(function: Callable[..., Any]) -> Any:
    """A helper that is called seldom: it stays a function of its own, and its callers are laid out as if it were not there."""
    return _helper(function, _RareCompiler)


def _helper(function: Callable[..., Any], compiler: type[_HelperCompiler]) -> Any:
    helper = _jit(
        function,
        cached=False,
        pipeline_class=compiler,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        no_rewrites=True,
    )
    template = helper.get_call_template
    helper.get_call_template = lambda args, kws: template(tuple(map(_widened, args)), kws)
    return helper


def _widened(kind: Any) -> Any:
    kind = types.unliteral(kind)
    return types.int64 if isinstance(kind, types.Integer) and kind != types.uint64 else kind


def entry(function: Callable[..., Any]) -> Any:
    """A function that Python calls: it is cached on disk with everything that it inlines."""
    return _jit(function, cached=True, pipeline_class=_EntryCompiler)


def wide_entry(function: Callable[..., Any]) -> Any:
    """As `entry`, for long rows of numbers: compiled as Numba does it, which vectorises loops."""
    return _jit(function, cached=True)


def parallel_entry(function: Callable[..., Any]) -> Any:
    """As `entry`, with `numba.prange` on several threads; compiled only when it is first called."""
    return _jit(function, cached=True, pipeline_class=_ParallelCompiler, parallel=True)
