#!/usr/bin/env python3
"""Gathers the node tests of ONNX's backend test suite that the importer claims.

    pip install onnx==1.18.0 safetensors==0.8.0 numpy
    python tests/interchange/node_tests.py OUT [--largest BYTES]

The tests ship inside the package of onnx (later ones come without their data). Taken are those of
which every operator is in `OPERATORS` (models/src/onnx/mod.rs). A test gives weights as inputs of
the graph: here all inputs but the first become initialisers with the values that the test gives
them. The file written has for each test the model's bytes, the first input and the first output.
"""
import argparse
import re
from pathlib import Path

import numpy
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]


def operators():
    """What the importer claims."""
    source = (ROOT / "models/src/onnx/mod.rs").read_text()
    listed = re.search(r"pub const OPERATORS.*?\[(.*?)\];", source, re.S).group(1)
    return set(re.findall(r'"(\w+)"', listed))


def case(folder):
    """A test as (model, input, output); what is no tensor has no numbers."""
    model = onnx.load(folder / "model.onnx")
    data = folder / "test_data_set_0"
    infos = [*model.graph.input, model.graph.output[0]]
    if not all(info.type.HasField("tensor_type") for info in infos):
        return model.SerializeToString(), numpy.zeros(0), numpy.zeros(0)
    read = lambda name: onnx.load_tensor(data / f"{name}.pb")
    inputs = list(model.graph.input)
    for at, info in enumerate(inputs[1:], 1):
        tensor = read(f"input_{at}")
        tensor.name = info.name
        model.graph.initializer.append(tensor)
        model.graph.input.remove(info)
    numbers = [numpy_helper.to_array(read(name)) for name in ("input_0", "output_0")]
    return model.SerializeToString(), *numbers


def main():
    """Writes one file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--largest", type=int, default=1 << 40, help="leave larger tests out")
    args = parser.parse_args()
    claimed, all_tensors, names = operators(), {}, []
    data = Path(onnx.__file__).parent / "backend/test/data/node"
    for folder in sorted(data.iterdir()):
        graph = onnx.load(folder / "model.onnx").graph
        if not {node.op_type for node in graph.node} <= claimed:
            continue
        model, given, output = case(folder)
        bytes_of = numpy.frombuffer(model, dtype=numpy.uint8)
        if len(model) + 4 * (given.size + output.size) > args.largest:
            continue
        names.append(folder.name)
        all_tensors[f"{folder.name}/model"] = bytes_of
        for name, array in (("input", given), ("output", output)):
            all_tensors[f"{folder.name}/{name}"] = numpy.asarray(array, dtype=numpy.float32, order="C")
    save_file(all_tensors, args.out)
    print(f"{args.out}: {len(names)} tests, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
