#!/usr/bin/env python3
"""Reads model files by docs/format.md alone, with nothing but Python's standard library.

    reader.py FILE...

Prints what each file says, layer by layer, and the sum of each tensor; says what is wrong with a
file that must be refused, and exits with 1.
"""

import math
import struct
import sys
import zlib

MAGIC = b"\x93SEPAL\r\n"
HEADER, BLOB_ALIGN, ALIGN = 32, 256, 16
MANIFEST_MAX, TEXT_MAX = 1 << 24, 1 << 16
MAJOR, MINOR, CHECKPOINT = 1, 0, 1

NET, LAYER, TENSOR, CLASS, RUN, OUTCOME, STATE = range(1, 8)
OPTIONAL = 0x40
PROVENANCE, SEPARATION, NOTE = OPTIONAL | 1, OPTIONAL | 2, OPTIONAL | 3

# Tag: name, fields. One letter each: b u8, h u16, w u32, d u64, f f32, g f64, t bool, s text.
WINDOW = [("kernel", "bb"), ("stride", "bb"), ("padding", "bb")]
LAYERS = {
    1: ("conv2d", [("filters", "w"), *WINDOW, ("groups", "w"), ("bias", "t")]),
    2: ("batch_norm", [("affine", "t"), ("eps", "f"), ("momentum", "f")]),
    3: ("relu", []),
    4: ("relu6", []),
    5: ("leaky_relu", [("slope", "f")]),
    6: ("tanh", []),
    7: ("max_pool", WINDOW),
    8: ("avg_pool", WINDOW),
    9: ("global_avg_pool", []),
    10: ("dense", [("units", "w"), ("bias", "t")]),
    11: ("dropout", [("rate", "f")]),
    12: ("flatten", []),
    13: ("standardise", []),
    14: ("l2_normalise", []),
    15: ("avg_pool_to", [("rows", "b"), ("columns", "b")]),
    16: ("channel_std", []),
    17: ("project", [("dimensions", "w"), ("seed", "d")]),
    18: ("residual", [("back", "b"), ("projects", "t")]),
    19: ("embedding", [("tokens", "w"), ("dimensions", "w")]),
    20: ("k_max_pool", [("k", "b")]),
    21: ("space_to_depth", [("factor", "b")]),
    22: ("quantise", [("scale", "f"), ("zero", "b")]),
}
ROLES = ["weight", "bias", "mean", "variance"]
TYPES = {0: ("f32", 4), 1: ("f16", 2), 2: ("i8", 1)}


class Refused(Exception):
    """The file must be refused."""


def need(holds, *what):
    if not holds:
        raise Refused(" ".join(str(part) for part in what))


class Fields:
    """The fields of a record, one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        need(self.at + count <= len(self.data), "a record ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self, bits):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            need(shift < bits, "a number of more than", bits, "bits")
        need(value < 1 << bits, "a number of more than", bits, "bits")
        return value

    def one(self, kind):
        if kind in "bt":
            value = self.take(1)[0]
            need(kind == "b" or value < 2, "a bool that is", value)
            return value
        if kind in "hwd":
            return self.varint({"h": 16, "w": 32, "d": 64}[kind])
        if kind in "fg":
            return struct.unpack("<" + {"f": "f", "g": "d"}[kind], self.take(4 if kind == "f" else 8))[0]
        length = self.varint(32)
        need(length <= TEXT_MAX, "a text of", length, "bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise Refused("a text that is no UTF-8") from None

    def all(self, kinds):
        return [self.one(kind) for kind in kinds]

    def option(self, kind):
        return self.one(kind) if self.one("t") else None

    def end(self, minor):
        need(minor > MINOR or self.at == len(self.data), "bytes behind a record's fields")


def places(size, kernel, stride, padding):
    room = size + 2 * padding - kernel
    need(kernel and stride and room >= 0, "a kernel of", kernel, "on", size)
    return room // stride + 1


def within(value, least, most):
    """Whether a number is not less than the one, and less than the other."""
    return least <= value < most


def output(name, f, shape):
    """The shape that a layer gives."""
    c, h, w = shape
    if name in ("conv2d", "max_pool", "avg_pool"):
        (kh, kw), (sh, sw), (ph, pw) = f["kernel"], f["stride"], f["padding"]
        if name == "conv2d":
            need(f["filters"] and f["groups"], "no filters or groups")
            need(c % f["groups"] == 0 and f["filters"] % f["groups"] == 0, "groups do not divide")
            c = f["filters"]
        if name == "max_pool":
            need(ph < kh and pw < kw and kh * kw <= 255, "a pool's window")
        return c, places(h, kh, sh, ph), places(w, kw, sw, pw)
    if name == "avg_pool_to":
        need(f["rows"] and f["columns"], "no bins")
        return c, min(h, f["rows"]), min(w, f["columns"])
    if name in ("global_avg_pool", "channel_std"):
        return c, 1, 1
    if name == "flatten":
        return c * h * w, 1, 1
    if name in ("dense", "project"):
        units = f["units" if name == "dense" else "dimensions"]
        need(units, "no units")
        return units, 1, 1
    if name == "embedding":
        need(c == 1 and f["tokens"] and f["dimensions"], "an embedding of", f)
        return f["dimensions"], h, w
    if name == "k_max_pool":
        need(1 <= f["k"] <= w <= 1 << 16, "k is", f["k"])
        return c, h, f["k"]
    if name == "space_to_depth":
        s = f["factor"]
        need(s and h % s == 0 and w % s == 0, "factor is", s)
        return c * s * s, h // s, w // s
    if name == "batch_norm":
        need(f["eps"] > 0 and f["eps"] < math.inf and 0 <= f["momentum"] <= 1, "a norm of", f)
    if name == "leaky_relu":
        need(within(f["slope"], 0, math.inf), "slope is", f["slope"])
    if name == "dropout":
        need(within(f["rate"], 0, 1), "rate is", f["rate"])
    if name == "quantise":
        need(f["scale"] > 0 and f["scale"] < math.inf, "scale is", f["scale"])
    return shape


def check_sum(f, index, shape, waiting):
    """Whether a layer can add what reached one of `waiting`, the layers of its block before it."""
    need(f["back"] and index - f["back"] in waiting, "layer", index, "adds what is not in its block")
    source = waiting[index - f["back"]]
    if f["projects"]:
        c, h, w = source
        need(c == f["channels"], "channels are", c)
        sh, sw = f["stride"]
        source = shape[0], places(h, 1, sh, 0), places(w, 1, sw, 0)
    need(source == shape, "layer", index, "adds", source, "to", shape)


def parameters(name, f, shape):
    """Elements of weight, bias, mean and variance."""
    c, h, w = shape
    if name == "conv2d":
        (kh, kw), bias = f["kernel"], f["filters"] if f["bias"] else 0
        return f["filters"] * (c // f["groups"]) * kh * kw, bias, 0, 0
    if name == "batch_norm":
        trained = c if f["affine"] else 0
        return trained, trained, c, c
    if name == "dense":
        return f["units"] * c * h * w, f["units"] if f["bias"] else 0, 0, 0
    if name == "standardise":
        return 0, 0, c * h * w, c * h * w
    if name == "embedding":
        return f["tokens"] * f["dimensions"], 0, 0, 0
    if name == "residual" and f["projects"]:
        return c * f["channels"], c, 0, 0
    return 0, 0, 0, 0


def word(data, at):
    return struct.unpack_from("<I", data, at)[0]


def records(manifest):
    rest = Fields(manifest)
    while rest.at < len(manifest):
        length = rest.varint(32)
        need(length >= 1, "an empty record")
        record = rest.take(length)
        yield record[0], record[1:]


def to_f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


class File:
    """A file that was checked as a whole."""

    def __init__(self, data):
        need(len(data) >= HEADER, "a file of", len(data), "bytes")
        need(data[:8] == MAGIC, "magic is", data[:8])
        major, self.minor = struct.unpack_from("<HH", data, 8)
        need(major == MAJOR, "major version is", major)
        self.flags, manifest_len, blob_at, blob_len = struct.unpack_from("<IIII", data, 12)
        need(self.flags & ~CHECKPOINT == 0, "flags are", hex(self.flags))
        need(manifest_len <= MANIFEST_MAX, "a manifest of", manifest_len, "bytes")
        end = HEADER + manifest_len
        need(blob_at % BLOB_ALIGN == 0 and blob_at >= end, "weights at", blob_at)
        need(len(data) == blob_at + blob_len + 4, "a file of", len(data), "bytes")
        manifest, self.blob = data[HEADER:end], data[blob_at : blob_at + blob_len]
        need(zlib.crc32(manifest, zlib.crc32(data[:28])) == word(data, 28), "checksum of the manifest")
        need(zlib.crc32(self.blob) == word(data, blob_at + blob_len), "checksum of the weights")
        need(not any(data[end:blob_at]), "padding that is not zeros")
        self.net = self.run = self.provenance = None
        self.layers, self.tensors, self.classes = [], [], []
        self.outcomes, self.states, self.separation, self.notes = [], [], [], []
        last = 0
        for kind, payload in records(manifest):
            need(kind >= last, "kind", kind, "behind", last)
            last = kind
            fields = Fields(payload)
            if self.record(kind, fields):
                fields.end(self.minor)
        need(self.net, "no net")
        layers, tensors, classes, _ = self.net["counts"]
        found = (len(self.layers), len(self.tensors), len(self.classes))
        need(found == (layers, tensors, classes), "records are", found)
        need((self.run is not None) == bool(self.flags & CHECKPOINT), "a checkpoint by halves")
        self.check_net()

    def record(self, kind, f):
        """Reads a record; false where it is skipped."""
        if kind == NET:
            need(self.net is None, "two nets")
            counts = f.all("hhhh")
            ends = f.all("h" * counts[3])
            self.net = {"counts": counts, "ends": ends, "features": f.one("h"), "input": tuple(f.all("www"))}
            self.net["mean"], self.net["deviation"] = f.all("ffff"), f.all("ffff")
        elif kind == LAYER:
            tag = f.one("h")
            need(tag in LAYERS, "tag is", tag)
            name, layout = LAYERS[tag]
            fields = {key: f.all(kinds) if len(kinds) > 1 else f.one(kinds) for key, kinds in layout}
            if name == "residual" and fields["projects"]:
                fields |= {"channels": f.one("w"), "stride": f.all("bb")}
            self.layers.append((name, fields))
        elif kind == TENSOR:
            self.tensors.append(tuple(f.all("hbbwwww")))
        elif kind == CLASS:
            self.classes.append(f.one("s"))
        elif kind == RUN:
            need(self.run is None, "two checkpoints")
            self.run = [f.one("s"), f.one("d"), f.one("s"), *f.all("hwhwwgdddff"), f.option("f"), *f.all("ht")]
        elif kind == OUTCOME:
            self.outcomes.append(f.all("hhhwfff"))
        elif kind == STATE:
            slot, at, length = f.all("bww")
            need(slot <= 3 and all(slot > other for other, _, _ in self.states), "slot", slot)
            need(at % ALIGN == 0 and length % 4 == 0 and at + length <= len(self.blob), "state of slot", slot)
            self.states.append((slot, at, length))
        elif kind == PROVENANCE:
            need(self.provenance is None, "two provenances")
            self.provenance = [f.one("s"), f.one("s"), *f.all("dd")]
        elif kind == SEPARATION:
            self.separation.append(f.all("hf"))
        elif kind == NOTE:
            self.notes.append(f.one("s"))
        else:
            need(kind & OPTIONAL and self.minor > MINOR, "kind is", kind)
            return False
        return True

    def check_net(self):
        ends = self.net["ends"]
        ascending = all(a < b for a, b in zip([0, *ends], ends))
        need(ascending and (ends[-1] if ends else 0) == len(self.layers), "blocks end at", ends)
        need(self.net["features"] <= len(ends), "features are", self.net["features"])
        shape, expected = self.net["input"], []
        shapes, waits = {}, {}
        for index, (name, fields) in enumerate(self.layers):
            if name == "residual":
                waits[index - fields["back"]] = index
        for index, (name, fields) in enumerate(self.layers):
            need(all(shape), "layer", index, "takes", shape)
            if index in ends:
                shapes = {}
            if name == "residual":
                check_sum(fields, index, shape, shapes)
            shapes[index] = shape
            held = [first for first in shapes if waits.get(first, 0) > index]
            need(len(held) <= 2, "at layer", index, "wait", len(held))
            after = output(name, fields, shape)
            lengths = enumerate(parameters(name, fields, shape))
            expected += [(index, role, elements) for role, elements in lengths if elements]
            shape = after
        self.shape = shape
        need(len(expected) == len(self.tensors), "tensors are", len(self.tensors))
        for (layer, role, elements), tensor in zip(expected, self.tensors):
            self.check_tensor((layer, role), elements, tensor)

    def check_tensor(self, of, elements, tensor):
        layer, role, kind, at, length, scales_at, scales_len = tensor
        need((layer, role) == of, "a tensor of", (layer, role), "in place of", of)
        need(kind in TYPES and (role == 0 or kind == 0), "type is", kind)
        need(length == elements * TYPES[kind][1], "tensor of", of, "has", length, "bytes")
        for at, length in ((at, length), (scales_at, scales_len)):
            need(at % ALIGN == 0 and at + length <= len(self.blob), "tensor of", of, "at", at)
        scales = scales_len // 4
        whole = scales_len % 4 == 0 and scales and elements % scales == 0
        need(whole if kind == 2 else scales_len == 0, "scales of", of)

    def numbers(self, tensor):
        """The elements of a tensor."""
        _, _, kind, at, length, scales_at, scales_len = tensor
        data = self.blob[at : at + length]
        if kind == 2:
            codes = struct.unpack(f"<{length}b", data)
            scales = struct.unpack_from(f"<{scales_len // 4}f", self.blob, scales_at)
            run = len(codes) // len(scales)
            return [to_f32(code * scales[i // run]) for i, code in enumerate(codes)]
        letter, size = ("f", 4) if kind == 0 else ("e", 2)
        return struct.unpack(f"<{length // size}{letter}", data)

    def print(self):
        minor, flags = self.minor, self.flags
        print(f"version {MAJOR}.{minor}, flags {flags}, {len(self.blob)} bytes of weights")
        print("input", *self.net["input"], "mean", *self.net["mean"], "deviation", *self.net["deviation"])
        print("blocks", *self.net["ends"], "features", self.net["features"])
        tensors = iter(self.tensors)
        tensor = next(tensors, None)
        for index, (name, fields) in enumerate(self.layers):
            values = [v for value in fields.values() for v in (value if isinstance(value, list) else [value])]
            print("layer", index, name, *values)
            while tensor and tensor[0] == index:
                numbers = self.numbers(tensor)
                total = 0.0
                for number in numbers:
                    total += number
                print(" ", ROLES[tensor[1]], TYPES[tensor[2]][0], len(numbers), "sum", total)
                tensor = next(tensors, None)
        print("output", *self.shape)
        for name in self.classes:
            print("class", name)
        if self.run:
            print("run", *("none" if value is None else value for value in self.run))
        for outcome in self.outcomes:
            print("outcome", *outcome)
        for slot, at, length in self.states:
            total = 0.0
            for number in struct.unpack_from(f"<{length // 4}f", self.blob, at):
                total += number
            print("state", slot, length // 4, "sum", total)
        if self.provenance:
            print("provenance", *self.provenance)
        for block, si in self.separation:
            print("separation", block, si)
        for note in self.notes:
            print("note", note)


def main(paths):
    wrong = 0
    for path in paths:
        try:
            with open(path, "rb") as file:
                File(file.read()).print()
        except Refused as error:
            print(f"{path}: refused: {error}", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
