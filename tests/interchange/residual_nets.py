#!/usr/bin/env python3
"""Makes small residual nets as ONNX and as PyTorch's weights, with what ONNX Runtime computes.

    pip install onnx==1.23.2 onnxruntime==1.32.0 safetensors==0.8.0 numpy
    python tests/interchange/residual_nets.py tests/interchange/residual.safetensors

`resnet` is a ResNet for 32x32 images with torchvision's module names, narrower: its graph is what an exporter
writes that does not fold norms, its weights are a file of PyTorch's. In `swapped` the shortcuts stand before
their branches and are the first input of the sums. `mobilenetv2` has linear bottlenecks. Weights, statistics
and inputs are random, from one seed.
"""
import gzip
import sys

import numpy
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper
from safetensors.numpy import save

SHAPE = (3, 16, 16)


class Graph:
    """Nodes as they are added."""

    def __init__(self, seed):
        self.nodes, self.tensors, self.random = [], {}, numpy.random.default_rng(seed)

    def node(self, kind, inputs, **attributes):
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"n{len(self.nodes)}", **attributes))
        return out

    def tensor(self, name, array):
        self.tensors[name] = numpy.asarray(array, dtype=numpy.float32)
        return name

    def conv(self, name, x, channels, filters, kernel, stride=1, groups=1):
        shape = (filters, channels // groups, kernel, kernel)
        deviation = (2 / (shape[1] * kernel * kernel)) ** 0.5
        weight = self.tensor(f"{name}.weight", self.random.normal(0, deviation, shape))
        pads = [kernel // 2] * 4
        return self.node("Conv", [x, weight], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=groups)

    def norm(self, name, x, channels):
        of = {"weight": (0.5, 1.5), "bias": (0.0, 0.4), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
        names = [self.tensor(f"{name}.{part}", self.random.uniform(*of[part], channels)) for part in of]
        return self.node("BatchNormalization", [x, *names], epsilon=1e-5)

    def relu6(self, x):
        low, high = self.tensor("low", numpy.float32(0)), self.tensor("high", numpy.float32(6))
        return self.node("Clip", [x, low, high])

    def end(self, x, channels, classes):
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        weight = self.tensor("fc.weight", self.random.normal(0, 0.5, (classes, channels)))
        bias = self.tensor("fc.bias", self.random.normal(0, 0.5, classes))
        return self.node("Gemm", [x, weight, bias], transB=1)

    def model(self, y):
        info = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        tensors = [numpy_helper.from_array(array, name) for name, array in self.tensors.items()]
        graph = helper.make_graph(self.nodes, "net", [info("x", ["N", *SHAPE])], [info(y, ["N", 5])], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(model)
        return model.SerializeToString()


def resnet(swapped):
    """Two units each of 4, 6 and 8 filters; the file, and the weights by name."""
    g = Graph(7)
    x = g.node("Relu", [g.norm("bn1", g.conv("conv1", "x", 3, 4, 3), 4)])
    channels = 4
    for layer, filters in enumerate([4, 6, 8], 1):
        for unit in range(2):
            name, stride = f"layer{layer}.{unit}", 2 if unit == 0 and layer > 1 else 1
            def branch():
                y = g.norm(f"{name}.bn1", g.conv(f"{name}.conv1", x, channels, filters, 3, stride), filters)
                return g.norm(f"{name}.bn2", g.conv(f"{name}.conv2", g.node("Relu", [y]), filters, filters, 3), filters)
            def shortcut():
                if channels == filters:
                    return x
                y = g.conv(f"{name}.downsample.0", x, channels, filters, 1, stride)
                return g.norm(f"{name}.downsample.1", y, filters)
            if swapped:
                s, y = shortcut(), branch()
            else:
                y, s = branch(), shortcut()
            x = g.node("Relu", [g.node("Add", [s, y] if swapped else [y, s])])
            channels = filters
    return g.model(g.end(x, channels, 5)), g.tensors


def mobilenetv2():
    """Linear bottlenecks: the sum is not behind an activation, and what is added is what a norm gives."""
    g = Graph(8)
    x, channels = g.relu6(g.norm("features.0.1", g.conv("features.0.0", "x", 3, 4, 3, 2), 4)), 4
    for at, (wide, filters, stride) in enumerate([(8, 4, 1), (12, 6, 2), (18, 6, 1), (18, 6, 1)], 1):
        name = f"features.{at}.conv"
        y = g.relu6(g.norm(f"{name}.0.1", g.conv(f"{name}.0.0", x, channels, wide, 1), wide))
        y = g.relu6(g.norm(f"{name}.1.1", g.conv(f"{name}.1.0", y, wide, wide, 3, stride, wide), wide))
        y = g.norm(f"{name}.3", g.conv(f"{name}.2", y, wide, filters, 1), filters)
        x = g.node("Add", [x, y]) if stride == 1 and channels == filters else y
        channels = filters
    return g.model(g.end(x, channels, 5))


def main():
    """Writes one file."""
    places = numpy.arange(2 * int(numpy.prod(SHAPE)))
    x = ((places * 37 + 11) % 101 / 101 - 0.5).astype(numpy.float32).reshape(2, *SHAPE)
    plain, weights = resnet(False)
    models = {"resnet": plain, "resnet-swapped": resnet(True)[0], "mobilenetv2": mobilenetv2()}
    outputs, tensors = {}, {}
    for name, model in models.items():
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs[name] = session.run(None, {"x": x})[0]
    models["resnet-cifar.weights"], outputs["resnet-cifar.weights"] = save(weights), outputs["resnet"]
    for name, model in models.items():
        tensors[f"{name}/model"] = numpy.frombuffer(model, dtype=numpy.uint8)
        tensors[f"{name}/output"] = outputs[name].reshape(-1)
        tensors[f"{name}/shape"] = numpy.array(SHAPE, dtype=numpy.uint8)
    with open(sys.argv[1] + ".gz", "wb") as file:
        file.write(gzip.compress(save(tensors), mtime=0))


if __name__ == "__main__":
    main()
