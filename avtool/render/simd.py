"""Eight float32 lanes as one numba value, lowered to LLVM's <8 x float>.

numba's auto-vectorizer gives up on the rasterizer's inner loops; with an explicit vector type LLVM emits one AVX
register (or two SSE / NEON ones). Arithmetic carries the "contract" flag, so products and sums fuse where the machine
can fuse them and stay apart where it would have to emulate it.
"""

from __future__ import annotations

import operator
import struct
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 8
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_FUSE = ("contract",)


class Float8Type(types.Type):
    """numba's type of eight float32 lanes."""

    def __init__(self) -> None:
        super().__init__(name="avtool_float8")


float8 = Float8Type()


@register_model(Float8Type)
class _Float8Model(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, _FLOATS)


def _define_operator(function: Any, method: str, arity: int) -> None:
    operands = (float8,) * arity

    @infer_global(function)
    class _Template(ConcreteTemplate):
        cases = [signature(float8, *operands)]

    @lower_builtin(function, *operands)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, method)(*args, flags=_FUSE)


for _function, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_function, _method, 2)
_define_operator(operator.neg, "fneg", 1)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    vector = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(_INTS, [ir.Constant(_INT, 0)] * LANES))


def _constant(value: float) -> Any:
    rounded = struct.unpack("f", struct.pack("f", value))[0]
    return ir.Constant(_FLOATS, [ir.Constant(_FLOAT, rounded)] * LANES)


def _call(builder: Any, name: str, *args: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fmuladd.v8f32", a, b, c)


def _element(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array = context.make_array(sig.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def broadcast(typing: Any, value: Any) -> Any:
    """One float32 in every lane."""
    return float8(types.float32), lambda context, builder, sig, args: _splat(builder, args[0])


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Eight consecutive elements of a flat float32 array."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.bitcast(_element(context, builder, sig, args), _FLOATS.as_pointer())
        return builder.load(pointer, align=4)

    return float8(array, types.int64), generate


@intrinsic
def load_broadcast(typing: Any, array: Any, index: Any) -> Any:
    """One element of a flat float32 array in every lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, builder.load(_element(context, builder, sig, args), align=4))

    return float8(array, types.int64), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight consecutive elements of a flat float32 array."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.bitcast(_element(context, builder, sig, args), _FLOATS.as_pointer())
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, float8), generate


@intrinsic
def transpose(typing: Any, array: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> Any:
    """Transpose eight rows of eight elements within a flat float32 array: rows begin ``source_row`` apart, and then
    ``target_row``. All is read before anything is written."""

    def shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(_INTS, [ir.Constant(_INT, lane) for lane in lanes]))

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = args[1].type

        def row(first: Any, step: Any, k: int) -> Any:
            at = builder.add(first, builder.mul(step, ir.Constant(wide, k)))
            return builder.bitcast(_element(context, builder, sig, (args[0], at)), _FLOATS.as_pointer())

        rows = [builder.load(row(args[1], args[2], k), align=4) for k in range(LANES)]
        # Interleave rows half the block apart; three times, and every element is in its place.
        low, high = [0, 8, 1, 9, 2, 10, 3, 11], [4, 12, 5, 13, 6, 14, 7, 15]
        for _ in range(3):
            pairs = [(rows[k], rows[k + 4]) for k in range(4)]
            rows = [shuffled(builder, a, b, lanes) for a, b in pairs for lanes in (low, high)]
        for k, value in enumerate(rows):
            builder.store(value, row(args[3], args[4], k), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of an element that is read soon."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        read, keep_in_all_caches, data = (ir.Constant(_INT, value) for value in (0, 3, 1))
        pointer = builder.bitcast(_element(context, builder, sig, args), byte)
        builder.call(function, [pointer, read, keep_in_all_caches, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def where_greater(typing: Any, a: Any, b: Any, chosen: Any, otherwise: Any) -> Any:
    """Lane by lane: chosen where a > b, else otherwise."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return float8(float8, float8, float8, float8), generate


@intrinsic
def any_positive(typing: Any, a: Any, b: Any) -> Any:
    """Whether any lane of two vectors of non-negative numbers is not zero."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = [builder.bitcast(value, _INTS) for value in args]
        either = builder.bitcast(builder.or_(*bits), _FLOATS)
        lanes = builder.bitcast(builder.fcmp_ordered(">", either, _constant(0.0)), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", lanes, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(float8, float8), generate


_EXP2 = (1.3276429381221533e-3, 9.675541892647743e-3, 5.550713464617729e-2, 2.4022120237350464e-1,
         6.931469440460205e-1, 1.0000001192092896)  # fmt: skip
"""Minimax polynomial of 2^r on [-1/2, 1/2], highest power first, relative error 2e-7."""


def _exp2(builder: Any, exponent: Any) -> Any:
    """2^x for x in [-126, 126]: nearest integer into the exponent bits, polynomial for the rest (Estrin)."""
    whole = _call(builder, "llvm.rint.v8f32", exponent)
    rest = builder.fsub(exponent, whole)
    square = builder.fmul(rest, rest)
    c5, c4, c3, c2, c1, c0 = (_constant(value) for value in _EXP2)
    upper = _fused(builder, _fused(builder, c5, rest, c4), square, _fused(builder, c3, rest, c2))
    mantissa = _fused(builder, upper, square, _fused(builder, c1, rest, c0))
    shift = ir.Constant(_INTS, [ir.Constant(_INT, 23)] * LANES)
    bits = builder.add(builder.bitcast(mantissa, _INTS), builder.shl(builder.fptosi(whole, _INTS), shift))
    return builder.bitcast(bits, _FLOATS)


@intrinsic
def alpha_from_log2(typing: Any, exponent: Any, peak: Any) -> Any:
    """min(2^exponent, 0.999) where it is at least 1/255 and exponent <= peak (sigma >= 0), else 0.

    The exponent is clamped on both sides first: outside, building the float's bits would wrap around.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        exponent, peak = args
        low, high = _constant(-126.0), _constant(126.0)
        clamped = builder.select(builder.fcmp_ordered(">", exponent, low), exponent, low)
        clamped = builder.select(builder.fcmp_ordered("<", clamped, high), clamped, high)
        alpha = _exp2(builder, clamped)
        seen = builder.and_(
            builder.fcmp_ordered(">=", alpha, _constant(1 / 255)), builder.fcmp_ordered("<=", exponent, peak)
        )
        cap = _constant(0.999)
        capped = builder.select(builder.fcmp_ordered("<", alpha, cap), alpha, cap)
        return builder.select(seen, capped, _constant(0.0))

    return float8(float8, float8), generate


@intrinsic
def float_bits(typing: Any, value: Any) -> Any:
    """The bits of a float32 as uint32: for positive numbers they sort as the numbers do."""
    return types.uint32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], _INT)
