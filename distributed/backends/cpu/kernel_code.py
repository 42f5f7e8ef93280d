"""LLVM code of products with packed weights: pure text, made by a few loops.

A weight (N, K) is packed into panels of two vectors of rows, each laid out (K, 2 * lanes), so that a product
reads it once, from its first byte to its last. A kernel multiplies a few rows of x with one panel and keeps
all sums in registers: rows x 2 vectors. Between its products it asks for cache lines that are needed soon. A
sum is added up in the order of K, whatever else is multiplied with it.

    rows{R}_{Q}    R rows of x times one panel; asks for Q quarters of a panel's length, from `ahead` on
    panels         all blocks of rows times a range of panels; w is a table of the panels' addresses, blocks
                   are (kernel's address, row, ahead)
    share          take chunks of panels of a job until none is left
    multiply       describe a job, share it, wait until every chunk is done
    help           share the jobs of another thread, as long as a flag is set

Registers and prefetching are those of x86-64: 16 registers of 8 floats with AVX2, 32 of 16 with AVX-512.
"""

from __future__ import annotations

from itertools import product

VECTORS = 2
MAX_BLOCK_ROWS = {8: 6, 16: 8}  # by lanes; with 8: 6 x 2 sums, 2 of the panel, 1 of x in 16 registers
UNROLLED = 4
QUARTERS = (1, 2, 4)  # of a panel, asked for beside a product
FLOAT_BYTES, LINE_BYTES = 4, 64

# Where a job's numbers lie, in bytes. What several threads write has a cache line of its own.
TICKETS, NUM_DONE, PARAMETERS, JOB_BYTES = 0, 64, 128, 256
_PARAMETERS = (
    *("x", "w", "out", "width", "depth", "blocks", "num_blocks"),
    *("num_panels", "per_chunk", "num_chunks"),
)

_HEAD = """
declare VECTOR @llvm.fma.vLANESf32(VECTOR, VECTOR, VECTOR)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.x86.sse2.pause()
declare i32 @sched_yield()
"""

_PANELS = """
define void @panels(ptr %x, ptr %w, ptr %out, i64 %width, i64 %depth, ptr %blocks, i64 %num_blocks,
                    i64 %first, i64 %end) {
entry:
  br label %panel
panel:
  %p = phi i64 [%first, %entry], [%p.next, %panel.done]
  %w.at = getelementptr ptr, ptr %w, i64 %p
  %w.panel = load ptr, ptr %w.at
  %column = mul i64 %p, WIDTH
  br label %block
block:
  %b = phi i64 [0, %panel], [%b.next, %block]
  %entry.offset = mul i64 %b, 3
  %kernel.at = getelementptr i64, ptr %blocks, i64 %entry.offset
  %kernel.address = load i64, ptr %kernel.at
  %kernel = inttoptr i64 %kernel.address to ptr
  %row.at = getelementptr i64, ptr %kernel.at, i64 1
  %row = load i64, ptr %row.at
  %ahead.at = getelementptr i64, ptr %kernel.at, i64 2
  %ahead.offset = load i64, ptr %ahead.at
  %x.offset = mul i64 %row, %depth
  %x.block = getelementptr float, ptr %x, i64 %x.offset
  %out.row = mul i64 %row, %width
  %out.offset = add i64 %out.row, %column
  %out.block = getelementptr float, ptr %out, i64 %out.offset
  %ahead = getelementptr i8, ptr %w.panel, i64 %ahead.offset
  call void %kernel(ptr %x.block, ptr %w.panel, ptr %out.block, i64 %width, i64 %depth, ptr %ahead)
  %b.next = add i64 %b, 1
  %b.more = icmp ult i64 %b.next, %num_blocks
  br i1 %b.more, label %block, label %panel.done
panel.done:
  %p.next = add i64 %p, 1
  %p.more = icmp ult i64 %p.next, %end
  br i1 %p.more, label %panel, label %done
done:
  ret void
}
"""

# A ticket is (number of the job << 32) + chunks not yet taken. Who has taken one may read the job's numbers:
# the next job is not described before all chunks of this one are done.
_SHARE = f"""
define void @share(ptr %job) {{
entry:
  %done.at = getelementptr i8, ptr %job, i64 {NUM_DONE}
  br label %look
look:
  %ticket = load atomic i64, ptr %job acquire, align 8
  %left = and i64 %ticket, 4294967295
  %is.over = icmp eq i64 %left, 0
  br i1 %is.over, label %over, label %take
take:
  %one.less = sub i64 %ticket, 1
  %taken = cmpxchg ptr %job, i64 %ticket, i64 %one.less acq_rel monotonic
  %is.ours = extractvalue {{i64, i1}} %taken, 1
  br i1 %is.ours, label %work, label %look
work:
{{load}}
  %chunk = sub i64 %num_chunks, %left
  %first = mul i64 %chunk, %per_chunk
  %beyond = add i64 %first, %per_chunk
  %is.whole = icmp ult i64 %beyond, %num_panels
  %end = select i1 %is.whole, i64 %beyond, i64 %num_panels
  call void @panels(ptr %x, ptr %w, ptr %out, i64 %width, i64 %depth, ptr %blocks, i64 %num_blocks,
                    i64 %first, i64 %end)
  %before = atomicrmw add ptr %done.at, i64 1 release
  br label %look
over:
  ret void
}}
"""

_MULTIPLY = f"""
define void @multiply(ptr %job, {{arguments}}) {{
entry:
{{store}}
  %done.at = getelementptr i8, ptr %job, i64 {NUM_DONE}
  store atomic i64 0, ptr %done.at monotonic, align 8
  %old = load atomic i64, ptr %job monotonic, align 8
  %old.number = lshr i64 %old, 32
  %number = add i64 %old.number, 1
  %high = shl i64 %number, 32
  %ticket = or i64 %high, %num_chunks
  store atomic i64 %ticket, ptr %job release, align 8
  call void @share(ptr %job)
  br label %look
look:
  %num.done = load atomic i64, ptr %done.at acquire, align 8
  %is.done = icmp eq i64 %num.done, %num_chunks
  br i1 %is.done, label %done, label %wait
wait:
  call void @llvm.x86.sse2.pause()
  br label %look
done:
  ret void
}}
"""

# After so many looks for work, a power of two, a helping thread offers its core to others: the BLAS has
# threads of its own, which would wait for the end of a time slice (one rank on two cores: 7 tokens/s, not 20)
_TURNS = 64
_HELP = """
define void @help(ptr %job, ptr %flag) {
entry:
  br label %look
look:
  %turn = phi i64 [0, %entry], [%turn.next, %wait]
  %wanted = load atomic i64, ptr %flag acquire, align 8
  %is.over = icmp eq i64 %wanted, 0
  br i1 %is.over, label %over, label %share
share:
  call void @share(ptr %job)
  call void @llvm.x86.sse2.pause()
  %turn.next = add i64 %turn, 1
  %low = and i64 %turn.next, TURNS
  %is.polite = icmp eq i64 %low, 0
  br i1 %is.polite, label %yield, label %wait
yield:
  %ignored = call i32 @sched_yield()
  br label %wait
wait:
  br label %look
over:
  ret void
}
""".replace("TURNS", str(_TURNS - 1))


def make_code(lanes: int) -> str:
    """Return the module's text, for vectors of so many floats."""
    kernels = [
        _kernel(rows, quarters, lanes)
        for rows, quarters in product(range(1, MAX_BLOCK_ROWS[lanes] + 1), QUARTERS)
    ]
    places = [
        (name, f"  %{name}.at = getelementptr i8, ptr %job, i64 {PARAMETERS + 8 * place}\n")
        for place, name in enumerate(_PARAMETERS)
    ]
    store = "\n".join(f"{at}  store {_type(name)} %{name}, ptr %{name}.at" for name, at in places)
    load = "\n".join(f"{at}  %{name} = load {_type(name)}, ptr %{name}.at" for name, at in places)
    arguments = ", ".join(f"{_type(name)} %{name}" for name in _PARAMETERS)
    share = _SHARE.replace("{load}", load)
    multiply = _MULTIPLY.replace("{arguments}", arguments).replace("{store}", store)
    code = "\n".join((_HEAD, *kernels, _PANELS, share, multiply, _HELP))
    replaced = {"VECTOR": f"<{lanes} x float>", "LANES": str(lanes), "WIDTH": str(VECTORS * lanes)}
    for word, text in replaced.items():
        code = code.replace(word, text)
    return code


def kernel_name(num_rows: int, num_quarters: int) -> str:
    """Return the name of a kernel."""
    return f"rows{num_rows}_{num_quarters}"


def _type(name: str) -> str:
    return "ptr" if name in ("x", "w", "out", "blocks") else "i64"


def _kernel(num_rows: int, num_quarters: int, lanes: int) -> str:
    sums = list(product(range(num_rows), range(VECTORS)))
    return "\n".join(
        (
            f"define void @{kernel_name(num_rows, num_quarters)}"
            "(ptr %x, ptr %w, ptr %out, i64 %width, i64 %depth, ptr %ahead) {",
            "entry:",
            *(f"  %row{row} = mul i64 %depth, {row}" for row in range(num_rows)),
            "  br label %loop",
            "loop:",
            "  %k = phi i64 [0, %entry], [%k.next, %loop]",
            *(
                f"  %sum{row}.{half}.0 = phi VECTOR [zeroinitializer, %entry], "
                f"[%sum{row}.{half}.{UNROLLED}, %loop]"
                for row, half in sums
            ),
            *_ask_ahead(num_quarters * VECTORS * lanes * FLOAT_BYTES // LINE_BYTES),
            "  %w.k = mul i64 %k, WIDTH",
            *(line for step in range(UNROLLED) for line in _step(step, num_rows, lanes)),
            f"  %k.next = add i64 %k, {UNROLLED}",
            "  %k.more = icmp ult i64 %k.next, %depth",
            "  br i1 %k.more, label %loop, label %done",
            "done:",
            *(line for row, half in sums for line in _store(row, half, lanes)),
            "  ret void",
            "}",
        )
    )


def _ask_ahead(num_lines: int) -> list[str]:
    lines = [f"  %ahead.k = mul i64 %k, {LINE_BYTES * num_lines // UNROLLED}"]
    for line in range(num_lines):
        lines += [
            f"  %ahead{line} = add i64 %ahead.k, {LINE_BYTES * line}",
            f"  %ahead{line}.at = getelementptr i8, ptr %ahead, i64 %ahead{line}",
            f"  call void @llvm.prefetch.p0(ptr %ahead{line}.at, i32 0, i32 3, i32 1)",
        ]
    return lines


def _step(step: int, num_rows: int, lanes: int) -> list[str]:
    """One step of K: sum += x[row, k] * w[k], for all rows and both vectors of the panel."""
    lines = []
    for half in range(VECTORS):
        lines += [
            f"  %w{step}.{half}.k = add i64 %w.k, {(step * VECTORS + half) * lanes}",
            f"  %w{step}.{half}.at = getelementptr float, ptr %w, i64 %w{step}.{half}.k",
            f"  %w{step}.{half} = load VECTOR, ptr %w{step}.{half}.at, align {lanes * FLOAT_BYTES}",
        ]
    lines.append(f"  %k{step} = add i64 %k, {step}")
    for row in range(num_rows):
        x = f"%x{row}.{step}"
        lines += [
            f"  {x}.k = add i64 %row{row}, %k{step}",
            f"  {x}.at = getelementptr float, ptr %x, i64 {x}.k",
            f"  {x} = load float, ptr {x}.at, align 4",
            f"  {x}.one = insertelement VECTOR poison, float {x}, i32 0",
            f"  {x}.all = shufflevector VECTOR {x}.one, VECTOR poison, <LANES x i32> zeroinitializer",
        ]
        lines += [
            f"  %sum{row}.{half}.{step + 1} = call VECTOR @llvm.fma.vLANESf32("
            f"VECTOR {x}.all, VECTOR %w{step}.{half}, VECTOR %sum{row}.{half}.{step})"
            for half in range(VECTORS)
        ]
    return lines


def _store(row: int, half: int, lanes: int) -> list[str]:
    out = f"%out{row}.{half}"
    return [
        f"  {out}.row = mul i64 %width, {row}",
        f"  {out}.column = add i64 {out}.row, {half * lanes}",
        f"  {out}.at = getelementptr float, ptr %out, i64 {out}.column",
        f"  store VECTOR %sum{row}.{half}.{UNROLLED}, ptr {out}.at, align 4",
    ]
