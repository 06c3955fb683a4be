#!/usr/bin/env python3
"""Makes small nets in PyTorch, as ONNX and as safetensors, with what they compute.

    pip install torch==2.15.0 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 safetensors==0.8.0
    python tests/interchange/torch_nets.py tests/interchange/torch.safetensors

Weights, norms' statistics and inputs are random, from one seed. Each case has an input, PyTorch's
output for it, and the model: the bytes of an ONNX file by either of PyTorch's exporters
(NAME.traced, NAME.exported), or those of a file of weights (NAME.weights). Every ONNX file
is checked against ONNX Runtime before it is kept.
"""
import io
import sys

import numpy
import onnxruntime
import torch
from safetensors.torch import save
from safetensors.numpy import save_file
from torch import nn


class LeNet(nn.Module):
    """As in PyTorch's tutorial, narrower; `view` with the batch's own size."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 4, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 12), nn.Linear(12, 8), nn.Linear(8, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return torch.log_softmax(self.fc3(x), dim=1)


class AlexNet(nn.Module):
    """torchvision's, narrower."""

    def __init__(self):
        super().__init__()
        pool = lambda: nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 11, 4, 2), nn.ReLU(True), pool(),
            nn.Conv2d(4, 6, 5, padding=2), nn.ReLU(True), pool(),
            nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(True),
            nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(True),
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(True), pool(),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(16, 8), nn.ReLU(True),
            nn.Dropout(), nn.Linear(8, 8), nn.ReLU(True), nn.Linear(8, 5),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Vgg(nn.Module):
    """Configuration A for 32x32 images, as usual for CIFAR, narrower."""

    def __init__(self, norm):
        super().__init__()
        layers, channels = [], 3
        for out in [4, "M", 4, "M", 5, 5, "M", 6, 6, "M", 6, 6, "M"]:
            if out == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(channels, out, 3, padding=1))
            layers += [nn.BatchNorm2d(out)] * norm + [nn.ReLU(True)]
            channels = out
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(6, 10)

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class Pair(nn.Module):
    """A depthwise convolution and one of 1x1."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class MobileNet(nn.Module):
    """As usual for CIFAR, narrower."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        steps = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        self.layers = nn.Sequential(*[Pair(8, 8, step) for step in steps])
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = self.layers(torch.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean([2, 3]))


class Odd(nn.Module):
    """What the others have not: groups, dilation, other activations, means, a product alone."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.a = nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 1), groups=2)
        self.b = nn.Conv2d(6, 4, 3, dilation=2, padding=2, bias=False)
        self.c, self.d = nn.Conv2d(4, 4, 1), nn.Linear(32, 8, bias=False)
        self.e = nn.BatchNorm1d(8)
        self.f = nn.Linear(8, 3)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 4, 1, 1))

    def forward(self, x):
        x = self.norm((x - self.mean) / 0.5)
        x = nn.functional.leaky_relu(self.a(x), 0.1)
        x = nn.functional.avg_pool2d(nn.functional.relu6(self.b(x)), 2)
        x = torch.tanh(self.c(x))
        x = self.e(self.d(torch.flatten(x, 1)))
        return torch.softmax(self.f(nn.functional.dropout(x, training=False)), dim=-1)


class Residual(nn.Module):
    """A block with an activation that core has not."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.short, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(torch.sigmoid(self.conv1(x)) + self.short(x))
        return self.head(x.mean([2, 3]))


NETS = {
    "lenet": (LeNet, (1, 28, 28)),
    "alexnet": (AlexNet, (3, 159, 159)),
    "vgg11": (lambda: Vgg(False), (3, 32, 32)),
    "vgg11_bn": (lambda: Vgg(True), (3, 32, 32)),
    "mobilenet": (MobileNet, (3, 32, 32)),
    "odd": (Odd, (4, 6, 7)),
    "residual": (Residual, (1, 6, 6)),
}


def input_of(samples, shape):
    """Numbers that every language makes the same way."""
    places = numpy.arange(samples * int(numpy.prod(shape)))
    return ((places * 37 + 11) % 101 / 101 - 0.5).astype(numpy.float32).reshape(samples, *shape)


def random(net):
    """Weights that let every layer tell samples apart; statistics and affine parts of norms too."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5), (module.bias.data, 0.0, 0.4),
            ):
                tensor.uniform_(low, high)
    return net.eval()


def onnx_of(net, x, exported):
    """The file of either exporter."""
    out = io.BytesIO()
    if exported:
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=(batch,)).save(out)
    else:
        axes = {"x": {0: "batch"}}
        torch.onnx.export(net, (x,), out, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return out.getvalue()


def main():
    """Writes one file."""
    tensors = {}
    for name, (make, shape) in NETS.items():
        torch.manual_seed(7)
        net, x = random(make()), torch.from_numpy(input_of(2, shape))
        with torch.no_grad():
            y = net(x).numpy()
        models = {f"{name}.traced": onnx_of(net, x, False), f"{name}.exported": onnx_of(net, x, True)}
        for model in models.values():
            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            numpy.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5)
        if name not in ("odd", "residual"):
            models[f"{name}.weights"] = save({k: v.contiguous() for k, v in net.state_dict().items()})
        for case, model in models.items():
            tensors[f"{case}/model"] = numpy.frombuffer(model, dtype=numpy.uint8)
            tensors[f"{case}/output"] = y.reshape(-1)
            tensors[f"{case}/shape"] = numpy.array(shape, dtype=numpy.uint8)
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
