#!/usr/bin/env python3
"""Training steps of PyTorch and of sepal in the same rounds, one thread each.

Needs torch and numpy, and the bench: BENCH is the executable that this prints:
    cargo bench --bench step --no-run
    python benches/peers/step.py BENCH [lenet] [vgg16] [--rounds 15]
CPU seconds are those of the whole process, the least of all rounds; a ratio above 1 says that
sepal is faster.
"""

import argparse
import os
import statistics
import subprocess
import time

THREADS = "1"
# Batch, as in benches/step.rs, and steps of a round.
WORKS = {"lenet": (128, 20), "vgg16": (32, 1)}
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = THREADS

import torch
from torch import nn

torch.set_num_threads(int(THREADS))
torch.manual_seed(0)


def lenet():
    layers = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*layers), (1, 28, 28)


def vgg16():
    layers, channels = [], 3
    for to in [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]:
        if to == 0:
            layers += [nn.MaxPool2d(2)]
        else:
            layers += [nn.Conv2d(channels, to, 3, padding=1), nn.BatchNorm2d(to)]
            layers += [nn.ReLU(inplace=True)]
            channels = to
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)), (3, 32, 32)


def peer(net, batch, channels_last):
    """A function that makes so many steps and gives their CPU and wall seconds."""
    model, shape = {"lenet": lenet, "vgg16": vgg16}[net]()
    x, y = torch.randn(batch, *shape), torch.randint(0, 10, (batch,))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def steps(count):
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            optimiser.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        return time.process_time() - cpu, time.perf_counter() - wall

    return steps


def own(bench, net):
    """The same of the bench."""
    command = [bench, "--serve", net, "--threads", THREADS]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def steps(count):
        print(count, file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{bench} ended with status {process.wait()}")
        return tuple(map(float, line.split()))

    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bench")
    parser.add_argument("nets", nargs="*", default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    for net in args.nets:
        batch, count = WORKS[net]
        jobs = {
            "sepal": own(args.bench, net),
            "torch NCHW": peer(net, batch, False),
            "torch channels-last": peer(net, batch, True),
        }
        for steps in jobs.values():
            steps(2)
        cpu = {name: [] for name in jobs}
        for _ in range(args.rounds):
            for name, steps in jobs.items():
                cpu[name].append(steps(count)[0])
        print(f"\n{net}, batch {batch}, {args.rounds} rounds of {count} steps, {THREADS} thread")
        print(f"{'':20} {'images/CPU s':>12} {'least':>7} {'median':>7}   ratio of sepal to it")
        for name, times in cpu.items():
            rate = batch * count / min(times)
            least = min(times) / min(cpu["sepal"])
            median = statistics.median(a / b for a, b in zip(times, cpu["sepal"]))
            print(f"{name:20} {rate:12.1f} {least:7.2f} {median:7.2f}")


main()
