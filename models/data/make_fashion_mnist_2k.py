#!/usr/bin/env python3
"""Makes the bundled Fashion-MNIST subset.

Usage: make_fashion_mnist_2k.py ORDER SOURCE DEST

ORDER is a file of little-endian u16 indices into the train file, SOURCE the folder of the four
official IDX files (.gz or not), DEST the folder to write. The training set is the first 2,000
indices of ORDER, in that order; the test set is the first 1,000 test images. The output has no
time stamp in it: the same input gives the same bytes with the same zlib.
"""

import gzip
import struct
import sys
from pathlib import Path

TRAIN, TEST = 2000, 1000


def read(folder, name):
    """The dimensions and the data of an IDX file of bytes."""
    packed = folder / (name + ".gz")
    raw = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    if raw[:3] != b"\0\0\x08":
        sys.exit(f"{folder / name}: not an IDX file of bytes")
    rank = raw[3]
    dims = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return dims, raw[4 + 4 * rank :]


def write(folder, name, dims, data):
    """Writes an IDX file of bytes, compressed."""
    raw = b"\0\0\x08" + bytes([len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + data
    (folder / (name + ".gz")).write_bytes(gzip.compress(raw, compresslevel=9, mtime=0))


def take(source, dest, kind, indices):
    """Writes the images and the labels at the indices."""
    dims, images = read(source, f"{kind}-images-idx3-ubyte")
    _, labels = read(source, f"{kind}-labels-idx1-ubyte")
    size = dims[1] * dims[2]
    write(
        dest,
        f"{kind}-images-idx3-ubyte",
        (len(indices), *dims[1:]),
        b"".join(images[i * size : (i + 1) * size] for i in indices),
    )
    write(dest, f"{kind}-labels-idx1-ubyte", (len(indices),), bytes(labels[i] for i in indices))


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    order, source, dest = map(Path, sys.argv[1:])
    order = order.read_bytes()
    order = struct.unpack(f"<{len(order) // 2}H", order)
    dest.mkdir(parents=True, exist_ok=True)
    take(source, dest, "train", order[:TRAIN])
    take(source, dest, "t10k", range(TEST))


main()
