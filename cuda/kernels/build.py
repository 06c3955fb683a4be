#!/usr/bin/env python3
"""Compiles kernels/*.cu to kernels/ptx, or checks (--check) that what is there is what they give.

Needs NVRTC 12.2.140, whose PTX (ISA 8.2) drivers from R535 on read:

    python3 -m venv V && V/bin/pip install --requirement requirements.txt && V/bin/python build.py
"""

import argparse
import ctypes
import importlib.util
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ARCHITECTURES = (75, 80)
VERSION = (12, 2)


def nvrtc():
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    if spec is None:
        sys.exit("NVRTC is missing: see --help")
    library = pathlib.Path(list(spec.submodule_search_locations)[0]) / "lib" / "libnvrtc.so.12"
    lib = ctypes.CDLL(str(library))
    major, minor = ctypes.c_int(), ctypes.c_int()
    lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != VERSION:
        sys.exit(f"NVRTC {major.value}.{minor.value} would write other PTX than {VERSION[0]}.{VERSION[1]}")
    return lib


def text(lib, program, size, get):
    n = ctypes.c_size_t()
    getattr(lib, size)(program, ctypes.byref(n))
    buffer = ctypes.create_string_buffer(n.value)
    getattr(lib, get)(program, buffer)
    return buffer.value.decode()


def expanded(path):
    """A file's text, with the files that it includes in their places."""
    include = lambda found: expanded(HERE / found.group(1))
    return re.sub(r'^#include "(.+)"\n', include, path.read_text(), flags=re.M)


def compile_one(lib, source, architecture):
    code = expanded(source)
    program = ctypes.c_void_p()
    lib.nvrtcCreateProgram(ctypes.byref(program), code.encode(), source.name.encode(), 0, None, None)
    options = [f"--gpu-architecture=compute_{architecture}".encode(), b"--std=c++17"]
    failed = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = text(lib, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
    if log.strip():
        print(f"{source.name}, compute_{architecture}:\n{log}", file=sys.stderr)
    if failed:
        sys.exit(f"{source.name} does not compile for compute_{architecture}")
    ptx = text(lib, program, "nvrtcGetPTXSize", "nvrtcGetPTX")
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    # The comments name the compiler's build, and its own headers leave constants that nothing reads.
    ptx = re.sub(r"^//.*\n", "", ptx, flags=re.M)
    ptx = re.sub(r"^\.global \.align 8 \.\w+ _ZN\w*nv6target.*;\n", "", ptx, flags=re.M)
    return ptx.strip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file differs")
    parser.add_argument("name", nargs="*", help="only these kernels, as in `search`")
    args = parser.parse_args()
    lib, stale = nvrtc(), []
    for source in sorted(HERE.glob("*.cu")):
        if args.name and source.stem not in args.name:
            continue
        for architecture in ARCHITECTURES:
            ptx = compile_one(lib, source, architecture)
            target = HERE / "ptx" / f"{source.stem}.{architecture}.ptx"
            if args.check:
                if not target.exists() or target.read_text() != ptx:
                    stale.append(target.name)
            else:
                target.parent.mkdir(exist_ok=True)
                target.write_text(ptx)
    if stale:
        sys.exit("not what the sources give, run kernels/build.py: " + ", ".join(stale))


if __name__ == "__main__":
    main()
