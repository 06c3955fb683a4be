#!/usr/bin/env python3
"""Training steps of PyTorch and of sepal in the same rounds, one thread each.

Needs torch and numpy, and the bench: BENCH is the executable that this prints:
    cargo bench --bench step --no-run
    python benches/peers/step.py BENCH [lenet] [vgg16] [--rounds 15]
CPU seconds are those of the whole process, the least of all rounds; a ratio above 1 says that
sepal is faster.
"""

import argparse
import statistics

import rounds

THREADS = "1"
# Batch, as in benches/step.rs, and steps of a round.
WORKS = {"lenet": (128, 20), "vgg16": (32, 1)}
rounds.threads(THREADS)

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


def peer(net, batch, count, channels_last):
    """A function that makes so many steps."""
    model, shape = {"lenet": lenet, "vgg16": vgg16}[net]()
    x, y = torch.randn(batch, *shape), torch.randint(0, 10, (batch,))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def steps():
        for _ in range(count):
            optimiser.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()

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
        command = [args.bench, "--serve", net, "--threads", THREADS]
        jobs = {
            "sepal": rounds.Ours(*command, line=count),
            "torch NCHW": rounds.Peer(peer(net, batch, count, False)),
            "torch channels-last": rounds.Peer(peer(net, batch, count, True)),
        }
        times = rounds.run(jobs, args.rounds)
        cpu = {name: [cpu for _, cpu in t] for name, t in times.items()}
        print(f"\n{net}, batch {batch}, {args.rounds} rounds of {count} steps, {THREADS} thread")
        print(f"{'':20} {'images/CPU s':>12} {'least':>7} {'median':>7}   ratio of sepal to it")
        for name, times in cpu.items():
            rate = batch * count / min(times)
            least = min(times) / min(cpu["sepal"])
            median = statistics.median(a / b for a, b in zip(times, cpu["sepal"]))
            print(f"{name:20} {rate:12.1f} {least:7.2f} {median:7.2f}")


main()
