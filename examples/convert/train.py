#!/usr/bin/env python3
"""Trains LeNet-5 in PyTorch on the bundled images of Fashion-MNIST, for `convert`.

    pip install torch==2.15.0 onnx==1.23.2 onnxscript==0.7.2 safetensors==0.8.0
    python examples/convert/train.py OUT

Writes OUT.safetensors (weights), OUT.onnx (layers and weights), and prints the accuracy on the
bundled test images, which are scaled as (x / 255 - 0.286) / 0.353.
"""
import gzip
import sys
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from torch import nn

DATA = Path(__file__).resolve().parents[2] / "models/data/fashion-mnist-2k"


class LeNet(nn.Module):
    """As in PyTorch's tutorial, with batch norm."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        x = torch.relu(self.fc2(torch.relu(self.fc1(torch.flatten(x, 1)))))
        return self.fc3(x)


def idx(name):
    """The numbers of an IDX file."""
    data = gzip.decompress((DATA / f"{name}.gz").read_bytes())
    return numpy.frombuffer(data, dtype=numpy.uint8, offset=4 + 4 * data[3])


def images(name):
    """Images as the net takes them, and their labels."""
    x = torch.from_numpy(idx(f"{name}-images-idx3-ubyte").astype(numpy.float32))
    labels = torch.from_numpy(idx(f"{name}-labels-idx1-ubyte").astype(numpy.int64))
    return (x.reshape(-1, 1, 28, 28) / 255 - 0.286) / 0.353, labels


def main():
    """Trains and saves."""
    torch.manual_seed(0)
    net, (x, labels), (test, expected) = LeNet(), images("train"), images("t10k")
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(15):
        for batch in torch.randperm(len(x)).split(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), labels[batch]).backward()
            optimiser.step()
    net.eval()
    with torch.no_grad():
        right = (net(test).argmax(1) == expected).float().mean().item()
    print(f"{100 * right:.2f} % of {len(test)} test images right")
    save_file(net.state_dict(), f"{sys.argv[1]}.safetensors")
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(net, (test[:2],), dynamo=True, dynamic_shapes=(batch,))
    program.save(f"{sys.argv[1]}.onnx")


if __name__ == "__main__":
    main()
