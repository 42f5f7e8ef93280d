"""LLVM code of what lies between the products of a layer: norm, rotation, gated unit, new tokens' attention.

NumPy takes some microseconds for each of the few dozen operations in a layer, and its matmul a call of the
BLAS for each head of each row. Here each of the four is one call. All arrays are float32; vectors are of 8.

    norm      rows of x by their root mean square, times a weight
    rotate    heads of x by cosines and sines of each row, times a factor of the row
    gate      silu(gate) * up
    attend    one new token a row: each row sees its own tokens only, whatever the others have

A row's result does not depend on the other rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

LANES = 8
MAX_GROUP = 12  # query heads of a key head: one vector register of sums each

FLOAT, INT, POINTER, VOID = ir.FloatType(), ir.IntType(64), ir.PointerType(), ir.VoidType()
VECTOR = ir.VectorType(FLOAT, LANES)
_WHOLE_VECTOR = ir.VectorType(ir.IntType(32), LANES)

# exp as in Cephes (S. Moshier, single/expf.c): 2^n times a polynomial of the rest.
_LEAST_EXPONENT, _GREATEST_EXPONENT = -87.3, 88.0
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_POLYNOMIAL = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)


def make_code(group: int, head_dim: int) -> str:
    """Return the module's text.

    Args:
        group: query heads of a key head, at most MAX_GROUP.
        head_dim: a multiple of 2 * LANES.
    """
    module = ir.Module("layer")
    _norm(module)
    _rotate(module)
    _gate(module)
    _attend(module, group, head_dim)
    return str(module)


class _Function:
    """A function being written, with the few ways to say things that its four users need."""

    def __init__(self, module: ir.Module, name: str, arguments: dict[str, ir.Type]) -> None:
        self.function = ir.Function(module, ir.FunctionType(VOID, list(arguments.values())), name)
        self.build = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.arguments = dict(zip(arguments, self.function.args, strict=True))

    @contextmanager
    def loop(self, end: Any, step: int = 1, sums: tuple[Any, ...] = ()) -> Iterator[_Loop]:
        """Count from 0 in steps; `end`, 1 at least, may be a number. Values in `sums` are carried along."""
        build = self.build
        before, body = build.block, self.function.append_basic_block("loop")
        build.branch(body)
        build.position_at_end(body)
        counter = build.phi(INT)
        counter.add_incoming(INT(0), before)
        carried = [build.phi(value.type) for value in sums]
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        loop = _Loop(counter, carried)
        yield loop
        following = build.add(counter, INT(step))
        counter.add_incoming(following, build.block)
        for phi, value in zip(carried, loop.sums, strict=True):
            phi.add_incoming(value, build.block)
        after = self.function.append_basic_block("after")
        end = INT(end) if isinstance(end, int) else end
        build.cbranch(build.icmp_signed("<", following, end), body, after)
        build.position_at_end(after)

    def at(self, pointer: Any, place: Any, kind: ir.Type = FLOAT) -> Any:
        """Return the address of the element at a place."""
        place = INT(place) if isinstance(place, int) else place
        return self.build.gep(pointer, [place], source_etype=kind)

    def load(self, pointer: Any, place: Any, kind: ir.Type = VECTOR) -> Any:
        """Read a vector, or an element of another kind, from an array of floats (of its kind, if whole)."""
        element = FLOAT if kind is VECTOR else kind
        return self.build.load(self.at(pointer, place, element), align=4, typ=kind)

    def store(self, value: Any, pointer: Any, place: Any) -> None:
        self.build.store(value, self.at(pointer, place), align=4)

    def spread(self, value: Any) -> Any:
        """Return a vector of one value."""
        one = self.build.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.IntType(32)(0))
        return self.build.shuffle_vector(one, one, ir.Constant(_WHOLE_VECTOR, [0] * LANES))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self._intrinsic("fma", VECTOR, [a, b, c])

    def total(self, vector: Any) -> Any:
        """Return the sum of a vector's elements."""
        return self._intrinsic("vector.reduce.fadd", FLOAT, [_real(-0.0), vector], ("reassoc",))

    def root(self, value: Any) -> Any:
        return self._intrinsic("sqrt", FLOAT, [value])

    def exp(self, x: Any) -> Any:
        """e^x of a vector; 1e-38 for what is less than -87, 2e38 for what is more than 88."""
        build = self.build
        least, most = self.spread(_real(_LEAST_EXPONENT)), self.spread(_real(_GREATEST_EXPONENT))
        x = build.select(build.fcmp_ordered(">", x, least), x, least)
        x = build.select(build.fcmp_ordered("<", x, most), x, most)
        power = self._intrinsic("nearbyint", VECTOR, [build.fmul(x, self.spread(_real(_LOG2_E)))])
        rest = self.multiply_add(power, self.spread(_real(-_LN2_HIGH)), x)
        rest = self.multiply_add(power, self.spread(_real(-_LN2_LOW)), rest)
        series = self.spread(_real(_POLYNOMIAL[0]))
        for factor in _POLYNOMIAL[1:]:
            series = self.multiply_add(series, rest, self.spread(_real(factor)))
        series = self.multiply_add(series, build.fmul(rest, rest), rest)
        series = build.fadd(series, self.spread(_real(1.0)))
        bits = build.add(build.fptosi(power, _WHOLE_VECTOR), ir.Constant(_WHOLE_VECTOR, [127] * LANES))
        bits = build.shl(bits, ir.Constant(_WHOLE_VECTOR, [23] * LANES))
        return build.fmul(series, build.bitcast(bits, VECTOR))

    def end(self) -> None:
        self.build.ret_void()

    def _intrinsic(self, name: str, result: Any, values: list[Any], fastmath: tuple[str, ...] = ()) -> Any:
        kinds = [value.type for value in values]
        full = f"llvm.{name}.{'f32' if kinds[-1] is FLOAT else f'v{LANES}f32'}"
        module = self.build.module
        callee = module.globals.get(full) or ir.Function(module, ir.FunctionType(result, kinds), full)
        return self.build.call(callee, values, fastmath=fastmath)


class _Loop:
    """The counter, and what is carried from turn to turn: set `sums` before the turn ends."""

    def __init__(self, counter: Any, carried: list[Any]) -> None:
        self.counter = counter
        self.sums = self.carried = carried


def _real(value: float) -> ir.Constant:
    """A constant that is a float32 exactly, as LLVM demands."""
    return ir.Constant(FLOAT, struct.unpack("f", struct.pack("f", value))[0])


def _norm(module: ir.Module) -> None:
    """x, out (rows, width); weight (width,)."""
    pointers = dict.fromkeys(("x", "weight", "out"), POINTER)
    code = _Function(module, "norm", {**pointers, "rows": INT, "width": INT, "eps": FLOAT})
    given, build = code.arguments, code.build
    with code.loop(given["rows"]) as row:
        start = build.mul(row.counter, given["width"])
        x, out = code.at(given["x"], start), code.at(given["out"], start)
        with code.loop(given["width"], LANES, (code.spread(_real(0.0)),)) as part:
            value = code.load(x, part.counter)
            part.sums = [code.multiply_add(value, value, part.carried[0])]
        total = code.total(part.sums[0])
        mean = build.fdiv(total, build.sitofp(given["width"], FLOAT))
        root = code.root(build.fadd(mean, given["eps"]))
        scale = code.spread(build.fdiv(_real(1.0), root))
        with code.loop(given["width"], LANES) as part:
            value = build.fmul(code.load(x, part.counter), scale)
            code.store(build.fmul(value, code.load(given["weight"], part.counter)), out, part.counter)
    code.end()


def _rotate(module: ir.Module) -> None:
    """x (rows, heads, 2 * half) with a stride of rows; cos, sin (rows, half); factors (rows,); out dense."""
    pointers = dict.fromkeys(("x", "cos", "sin", "factors", "out"), POINTER)
    counts = dict.fromkeys(("rows", "heads", "stride", "half"), INT)
    code = _Function(module, "rotate", {**pointers, **counts})
    given, build = code.arguments, code.build
    half = given["half"]
    width = build.mul(half, INT(2))
    with code.loop(given["rows"]) as row:
        factor = code.spread(code.load(given["factors"], row.counter, FLOAT))
        tables = [code.at(given[name], build.mul(row.counter, half)) for name in ("cos", "sin")]
        x_row = code.at(given["x"], build.mul(row.counter, given["stride"]))
        out_row = code.at(given["out"], build.mul(row.counter, build.mul(given["heads"], width)))
        with code.loop(given["heads"]) as head:
            start = build.mul(head.counter, width)
            x, out = code.at(x_row, start), code.at(out_row, start)
            with code.loop(half, LANES) as part:
                later = build.add(part.counter, half)
                cos, sin = (build.fmul(code.load(table, part.counter), factor) for table in tables)
                first, second = code.load(x, part.counter), code.load(x, later)
                minus = build.fneg(build.fmul(second, sin))
                code.store(code.multiply_add(first, cos, minus), out, part.counter)
                code.store(code.multiply_add(second, cos, build.fmul(first, sin)), out, later)
    code.end()


def _gate(module: ir.Module) -> None:
    """gate, up (rows, width) with a stride of rows; out dense."""
    pointers = dict.fromkeys(("gate", "up", "out"), POINTER)
    code = _Function(module, "gate", {**pointers, "rows": INT, "width": INT, "stride": INT})
    given, build = code.arguments, code.build
    one = code.spread(_real(1.0))
    with code.loop(given["rows"]) as row:
        start = build.mul(row.counter, given["stride"])
        gate, up = code.at(given["gate"], start), code.at(given["up"], start)
        out = code.at(given["out"], build.mul(row.counter, given["width"]))
        with code.loop(given["width"], LANES) as part:
            value = code.load(gate, part.counter)
            divisor = build.fadd(code.exp(build.fneg(value)), one)
            value = build.fmul(build.fdiv(value, divisor), code.load(up, part.counter))
            code.store(value, out, part.counter)
    code.end()


def _attend(module: ir.Module, group: int, head_dim: int) -> None:
    """q, out (rows, heads, group, head_dim); keys, values (slots, heads, capacity, head_dim).

    slots and counts say which tokens a row sees; a count is 1 at least. scratch (group, scratch_stride)
    holds scores: as many as the largest count, up to a multiple of LANES.
    """
    pointers = dict.fromkeys(("q", "keys", "values", "out", "slots", "counts", "scratch"), POINTER)
    counts = dict.fromkeys(("rows", "heads", "slot_stride", "head_stride", "scratch_stride"), INT)
    code = _Function(module, "attend", {**pointers, **counts})
    given, build = code.arguments, code.build
    scores = [
        code.at(given["scratch"], build.mul(given["scratch_stride"], INT(place))) for place in range(group)
    ]
    with code.loop(given["rows"]) as row:
        count = code.load(given["counts"], row.counter, INT)
        slot = build.mul(code.load(given["slots"], row.counter, INT), given["slot_stride"])
        with code.loop(given["heads"]) as head:
            offset = build.add(slot, build.mul(head.counter, given["head_stride"]))
            keys, values = code.at(given["keys"], offset), code.at(given["values"], offset)
            place = build.add(build.mul(row.counter, given["heads"]), head.counter)
            start = build.mul(place, INT(group * head_dim))
            q, out = code.at(given["q"], start), code.at(given["out"], start)
            greatest = _score(code, q, keys, count, scores, head_dim)
            totals = [_weigh(code, at, count, most) for at, most in zip(scores, greatest, strict=True)]
            _sum_up(code, values, count, scores, totals, out, head_dim)
    code.end()


def _score(code: _Function, q: Any, keys: Any, count: Any, scores: list[Any], head_dim: int) -> list[Any]:
    """Write the scores of every token for each query head; return the greatest of each."""
    build = code.build
    low = tuple(_real(-3.0e38) for _ in scores)
    with code.loop(count, 1, low) as token:
        key = code.at(keys, build.mul(token.counter, INT(head_dim)))
        parts = [code.load(key, part) for part in range(0, head_dim, LANES)]
        token.sums = []
        for place, at in enumerate(scores):
            total = code.spread(_real(0.0))
            for number, part in enumerate(parts):
                query = code.load(q, place * head_dim + number * LANES)
                total = code.multiply_add(query, part, total)
            score = code.total(total)
            code.store(score, at, token.counter)
            old = token.carried[place]
            token.sums.append(build.select(build.fcmp_ordered(">", score, old), score, old))
    padding = code.spread(_real(-3.0e38))
    for at in scores:  # what a vector reads beyond the last score
        code.store(padding, at, count)
    return list(token.sums)


def _weigh(code: _Function, scores: Any, count: Any, greatest: Any) -> Any:
    """Turn scores into weights relative to the greatest; return their sum."""
    build = code.build
    most = code.spread(greatest)
    with code.loop(count, LANES, (code.spread(_real(0.0)),)) as part:
        weights = code.exp(build.fsub(code.load(scores, part.counter), most))
        code.store(weights, scores, part.counter)
        part.sums = [build.fadd(part.carried[0], weights)]
    return code.total(part.sums[0])


def _sum_up(
    code: _Function, values: Any, count: Any, weights: list[Any], totals: list[Any], out: Any, head_dim: int
) -> None:
    """Write the weighted means of the values, as many columns at once as sums fit into registers."""
    build = code.build
    num_vectors = head_dim // LANES
    at_once = max(width for width in range(1, MAX_GROUP // len(weights) + 1) if num_vectors % width == 0)
    shares = [code.spread(build.fdiv(_real(1.0), total)) for total in totals]
    for first in range(0, num_vectors, at_once):
        columns = [(first + place) * LANES for place in range(at_once)]
        zeros = (code.spread(_real(0.0)),) * (at_once * len(weights))
        with code.loop(count, 1, zeros) as token:
            value = code.at(values, build.mul(token.counter, INT(head_dim)))
            parts = [code.load(value, column) for column in columns]
            token.sums = []
            for place, at in enumerate(weights):
                weight = code.spread(code.load(at, token.counter, FLOAT))
                token.sums += [
                    code.multiply_add(weight, part, token.carried[place * at_once + number])
                    for number, part in enumerate(parts)
                ]
        for place, share in enumerate(shares):
            for number, column in enumerate(columns):
                mean = build.fmul(token.sums[place * at_once + number], share)
                code.store(mean, out, place * head_dim + column)
