#!/usr/bin/env python3
"""Judges the kernels by the machine code that they become: prints docs/cuda-kernels.md.

With --check it writes nothing, and fails where a kernel spills registers or keeps an array in local memory, where the tensor cores' share of a
main loop fell below its gate, or where the page is not what the kernels give.

    python3 -m venv V && V/bin/pip install --requirement requirements.txt && V/bin/python gates.py

How a line comes about. `ptxas` compiles the built-in PTX for an architecture and tells registers, spills and
shared memory. Occupancy follows from these and the multiprocessor's limits. `nvdisasm` lists the code; the main
loop is the innermost one with the most arithmetic in f32 (64 operations or more). Its instructions, counted by the unit that runs them, and
that unit's rate give how many cycles one scheduler (a quarter of a multiprocessor) takes for it at least: the
unit with the most bounds the kernel. Loads of shared memory count as if all lanes read apart; where they share
what they read it takes less. Rates are those of NVIDIA's architecture white papers (Turing, A100, GA102,
Ada, H100), of the data sheets of the cards named, and of the table of instruction throughputs in the CUDA programming
guide; GeForce cards of 8.6 and 8.9 take twice as long for TF32. What waits for memory is
not in it: a kernel without such a loop moves data, and its bound is the memory's bandwidth.
"""

import argparse
import collections
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "cuda-kernels.md"

# By architecture: registers, shared memory in bytes, warps and blocks of a multiprocessor, shared memory that a
# block takes beside its own; then cycles of one scheduler for a warp's multiply-add in f32, for one m16n8k8 in
# TF32 (None where there is none), for an integer operation, and for each 128 bytes of shared memory.
Chip = collections.namedtuple("Chip", "name regs shared warps blocks extra ffma hmma integer lds")
CHIPS = {
    75: Chip("T4", 65536, 65536, 32, 16, 0, 2, None, 2, 4),
    80: Chip("A100", 65536, 167936, 64, 32, 1024, 2, 8, 2, 4),
    86: Chip("A10", 65536, 102400, 48, 16, 1024, 1, 16, 2, 4),
    89: Chip("L4", 65536, 102400, 48, 24, 1024, 1, 16, 2, 4),
    90: Chip("H100", 65536, 233472, 64, 32, 1024, 1, 4, 2, 4),
}

# Kernels whose main loop has tensor-core instructions, and the least share of its instructions that they are.
TENSOR = {
    "note_nearest": 0.22,
    "note_nearest_itself": 0.22,
    "conv_forward_large_tensor": 0.14,
    "conv_data_large_tensor": 0.14,
    "conv_weights_large_tensor": 0.14,
    "dense_forward_large_tensor": 0.17,
    "dense_data_large_tensor": 0.17,
    "dense_weights_large_tensor": 0.17,
}


def tool(name):
    spec = importlib.util.find_spec("nvidia.cu13")
    path = spec and pathlib.Path(list(spec.submodule_search_locations)[0]) / "bin" / name
    if not path or not path.exists():
        sys.exit(f"{name} is missing: see --help")
    return str(path)


def ptx_of(source, chip):
    return HERE / "ptx" / f"{source}.{80 if chip >= 80 else 75}.ptx"


def threads_of(ptx):
    """Threads of a block, as the kernels' launch bounds say."""
    found = {}
    for name, body in re.findall(r"\.entry (\w+)\((.*?)\{", ptx, flags=re.S):
        bound = re.search(r"\.(?:maxntid|reqntid) (\d+)", body)
        found[name] = int(bound.group(1)) if bound else 256
    return found


def usage(log):
    """Registers, bytes of shared memory, and bytes spilled or kept in local memory, by kernel."""
    found = {}
    for name, text in re.findall(r"Compiling entry function '(\w+)'.*?\n(.*?)(?=ptxas info    : Compiling|\Z)", log, flags=re.S):
        regs = int(re.search(r"Used (\d+) registers", text).group(1))
        shared = re.search(r"(\d+) bytes smem", text)
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes (?:spill|stack frame)", text))
        found[name] = (regs, int(shared.group(1)) if shared else 0, spilled)
    return found


def occupancy(chip, regs, shared, threads):
    """The share of a multiprocessor's warps that can be resident."""
    warps = -(-threads // 32)
    per_warp = -(-regs * 32 // 256) * 256
    by_regs = chip.regs // per_warp // 4 * 4 // warps
    by_shared = chip.shared // (shared + chip.extra) if shared + chip.extra else chip.blocks
    blocks = min(by_regs, by_shared, chip.warps // warps, chip.blocks)
    return blocks * warps / chip.warps


def loops(code):
    """The instructions of each innermost loop, by kernel."""
    found = {}
    for name, text in re.findall(r"\.text\.(\w+):\n(.*?)(?=\n//-+ \.|\Z)", code, flags=re.S):
        instructions, labels, inner = [], {}, []
        for line in text.splitlines():
            label = re.match(r"^(\.L_x_\d+):", line)
            if label:
                labels[label.group(1)] = len(instructions)
            op = re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line)
            if op:
                instructions.append(op.groups())
        for at, (op, operands) in enumerate(instructions):
            target = re.search(r"\.L_x_\d+", operands) if op.startswith("BRA") else None
            first = labels.get(target.group(0)) if target else None
            if first is not None and first <= at:
                inner.append((first, at))
        innermost = [a for a in inner if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in inner)]
        found[name] = [[op for op, _ in instructions[a : b + 1]] for a, b in innermost]
    return found


def work(loop):
    return sum(op.startswith(("FFMA", "FADD", "FMUL", "HMMA")) for op in loop)


def bound(chip, loop):
    """The unit that takes longest for a loop, with cycles by unit."""
    count = lambda *names: sum(op.startswith(names) for op in loop)
    shared = sum(4 if ".128" in op else 2 if ".64" in op else 1 for op in loop if op.startswith(("LDS", "STS")))
    shared += 4 * count("LDSM")
    cycles = {
        "issue": len(loop),
        "f32": chip.ffma * count("FFMA", "FADD", "FMUL"),
        "integer": chip.integer * count("IMAD", "IADD", "LOP3", "ISETP", "LEA", "SHF", "IMNMX", "VIADD"),
        "shared memory": chip.lds * shared,
    }
    if count("HMMA"):
        cycles["tensor cores"] = (chip.hmma or 0) * count("HMMA")
    return max(cycles, key=cycles.get), cycles


def judge(capability, ptxas, nvdisasm):
    chip = CHIPS[capability]
    for path in sorted((HERE / "ptx").glob("*.80.ptx")):
        source = path.name.split(".")[0]
        ptx = ptx_of(source, capability)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            run = subprocess.run([ptxas, f"-arch=sm_{capability}", "-v", str(ptx), "-o", cubin.name], capture_output=True, text=True)
            if run.returncode:
                sys.exit(f"{ptx.name} for sm_{capability}:\n{run.stderr}")
            code = subprocess.run([nvdisasm, "-c", cubin.name], capture_output=True, text=True, check=True).stdout
        threads, inner = threads_of(ptx.read_text()), loops(code)
        for name, (regs, shared, spilled) in sorted(usage(run.stderr).items()):
            loop = max(inner.get(name, []), key=work, default=[])
            yield source, name, chip, threads.get(name, 256), regs, shared, spilled, loop


def page():
    """The page, and what breaks a gate."""
    ptxas, nvdisasm = tool("ptxas"), tool("nvdisasm")
    lines, broken = [], []
    for capability in CHIPS:
        lines += [f"\n## Compute capability {capability // 10}.{capability % 10} ({CHIPS[capability].name})\n"]
        lines += ["| kernel | threads | registers | spilled | shared | occupancy | main loop | of it arithmetic | bound by |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for source, name, chip, threads, regs, shared, spilled, loop in judge(capability, ptxas, nvdisasm):
            kernel = f"{source}: {name}"
            if spilled:
                broken.append(f"{kernel} spills or keeps {spilled} bytes in local memory on sm_{capability}")
            tensor = sum(op.startswith("HMMA") for op in loop)
            least = TENSOR.get(name, 0) if capability >= 80 else 0
            if least and (not loop or tensor / len(loop) < least):
                broken.append(f"{kernel}: {tensor} of {len(loop)} instructions of the loop are of the tensor cores on sm_{capability}, expected {least:.0%}")
            share, unit, length = "", "memory", ""
            if work(loop) >= 64 or tensor:
                unit, cycles = bound(chip, loop)
                share = f"{tensor} HMMA, {tensor / len(loop):.0%}" if tensor else f"{work(loop)} f32, {work(loop) / len(loop):.0%}"
                unit, length = f"{unit}, {cycles[unit]} cycles", str(len(loop))
            filled = occupancy(chip, regs, shared, threads)
            lines.append(f"| {kernel} | {threads} | {regs} | {spilled} | {shared} | {filled:.0%} | {length} | {share} | {unit} |")
    head = PAGE.read_text().split("<!-- table -->")[0] if PAGE.exists() else "# The CUDA kernels as machine code\n\n"
    return head + "<!-- table -->\n" + "\n".join(lines) + "\n", broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a gate is broken")
    args = parser.parse_args()
    text, broken = page()
    if args.check and (not PAGE.exists() or PAGE.read_text() != text):
        broken.append(f"{PAGE.name} is not what the kernels give: run kernels/gates.py")
    if not args.check:
        PAGE.write_text(text)
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
