#!/usr/bin/env python3
"""Nets of torchvision, converted and run by ONNX Runtime, beside PyTorch.

    pip install torch==2.15.0 torchvision==0.29.2 onnx==1.23.2 onnxruntime==1.32.0 \\
        onnxscript==0.7.2 safetensors==0.8.0
    python tests/interchange/parity.py CONVERT FOLDER

CONVERT is the program, FOLDER holds the files of one net at a time. For each net and each way: the
largest difference to what PyTorch gives, beside the largest output. Weights are random.
"""
import subprocess
import sys
from pathlib import Path

import onnxruntime
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn


def lenet():
    """As in PyTorch's tutorial, in a row."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )


NETS = {
    "lenet": (lenet, "lenet", (1, 28, 28)),
    "alexnet": (torchvision.models.alexnet, "alexnet", (3, 224, 224)),
    "vgg11": (torchvision.models.vgg11, "vgg11", (3, 224, 224)),
    "vgg11_bn": (torchvision.models.vgg11_bn, "vgg11", (3, 224, 224)),
}


def run(path, x):
    """What ONNX Runtime gives."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def main():
    """Prints a table."""
    convert, folder = sys.argv[1], Path(sys.argv[2])
    for name, (make, architecture, shape) in NETS.items():
        torch.manual_seed(1)
        net, x = make(), torch.randn(2, *shape)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        with torch.no_grad():
            y = net.eval()(x)
        file = lambda end: str(folder / f"net.{end}")
        def to(source, out, *options):
            subprocess.run([convert, file(source), file(out), *options], check=True, stdout=subprocess.DEVNULL)
        def tell(way, found):
            print(f"| {name} | {way} | {(found - y).abs().max():.1e} | {y.abs().max():.2f} |", flush=True)
        known = ["--architecture", architecture, "--shape", ",".join(map(str, shape))]
        save_file(net.state_dict(), file("safetensors"))
        to("safetensors", "sepal", *known)
        to("sepal", "out.onnx")
        tell("safetensors, model file, ONNX", run(file("out.onnx"), x))
        to("safetensors", "out.onnx", "--fold", *known)
        tell("safetensors, norms folded, ONNX", run(file("out.onnx"), x))
        torch.onnx.export(net, (x,), file("onnx"), dynamo=True, external_data=False, verbose=False)
        to("onnx", "out.onnx")
        tell("ONNX, ONNX", run(file("out.onnx"), x))
        if name == "lenet":
            to("onnx", "out.safetensors")
            again = lenet()
            again.load_state_dict(load_file(file("out.safetensors")))
            with torch.no_grad():
                tell("ONNX, safetensors, PyTorch", again(x))


if __name__ == "__main__":
    main()
