#!/usr/bin/env python3
"""Prints the paired differences of results.md from results.jsonl.

Runs of one seed share their order of samples and their batches' seeds, so they are compared in pairs: the mean of
the differences over seeds, and Student's 95 % interval of that mean.
"""

import json
import pathlib
import statistics

# Two-sided 95 % quantiles of Student's distribution, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 4: 2.776}

PAIRS = [
    ("fashion-5000", "group3-e6-tuned", "e2e-7-tuned"),
    ("fashion-5000", "group3-e12-tuned", "e2e-30-tuned"),
    ("fashion-5000", "win6-e20-tuned", "e2e-30-tuned"),
    ("cifar-10-10000", "win3-e3", "e2e-7-tuned"),
    ("fashion-5000", "centre-win6-e7", "e2e-7-tuned"),
    ("fashion-5000", "centre-win6-e7-b64", "e2e-7-b64"),
    ("fashion-5000", "group3-e6-tuned", "e2e-7-b64"),
    ("fashion-5000", "e2e-7-b64", "e2e-7-tuned"),
    ("fashion-5000", "centre-win6-e20", "e2e-30-tuned"),
    ("fashion-5000", "centre-block-e3", "block-e3"),
    ("fashion-60000", "centre-win6-e7", "e2e-7-tuned"),
    ("fashion-60000", "centre-win6-e12", "e2e-15-tuned"),
    ("cifar-10-10000", "centre-win6-e7", "e2e-7-tuned"),
    ("cifar-10-10000", "centre-win3-conv-e3", "e2e-7-tuned"),
    ("cifar-10-10000", "centre-group3-conv-e6", "e2e-7-tuned"),
    ("cifar-10-10000", "centre-group3-conv-e6", "e2e-7-b64"),
    ("cifar-10-10000", "centre-conv-e3", "e2e-7-tuned"),
    ("cifar-10-10000", "centre-conv-e3", "e2e-7-b64"),
    ("cifar-10-10000", "e2e-7-b64", "e2e-7-tuned"),
    ("cifar-10-10000", "centre-conv-e3", "conv-e3"),
    ("cifar-10-10000", "centre-win6-e20", "e2e-20-tuned"),
    ("cifar-10-vgg16", "centre-group3-conv-e5", "e2e-7-tuned"),
    ("cifar-10-vgg16", "centre-win3-conv-e3", "e2e-7-tuned"),
    ("cifar-10-vgg16", "centre-conv-e3", "e2e-7-tuned"),
    ("cifar-10-vgg16", "centre-group3-conv-e15", "e2e-20-tuned"),
    ("ag-news-5000", "centre-win3-e3", "e2e-7-tuned"),
    ("ag-news-5000", "win3-e3", "e2e-7-tuned"),
    ("ag-news-5000", "conv-e3", "e2e-7-tuned"),
    ("fashion-5000", "group3-e6", "e2e-7"),
    ("fashion-5000", "win3-e3", "e2e-7"),
    ("fashion-5000", "conv-e3", "e2e-7"),
    ("fashion-5000", "block-e3", "e2e-7"),
    ("fashion-5000", "win3-e10", "e2e-30"),
    ("fashion-5000", "group3-e12", "e2e-30"),
    ("fashion-5000", "win6-e20", "e2e-30"),
    ("fashion-60000", "group3-e6", "e2e-7"),
    ("fashion-60000", "win6-e7", "e2e-7"),
    ("cifar-10-10000", "win3-e3", "e2e-7"),
    ("cifar-10-10000", "conv-e3", "e2e-7"),
    ("cifar-10-10000", "win3-e10", "e2e-20"),
    ("cifar-10-50000", "win3-e3", "e2e-7"),
    ("cifar-10-lenet", "centre-conv-e5", "e2e-tuned"),
    ("cifar-10-lenet", "centre-conv-e20", "e2e-30-tuned"),
    ("cifar-10-lenet", "si", "e2e-6"),
    ("cifar-10-lenet", "win2-e5", "e2e-6"),
    ("cifar-10-lenet", "si-e20", "e2e"),
    ("cifar-10-lenet", "si-e20", "e2e-30"),
    ("ag-news-5000", "win3-e3", "e2e-7"),
    ("ag-news-5000", "conv-e3", "e2e-7"),
]


def interval(differences):
    mean, n = statistics.mean(differences), len(differences)
    half = STUDENT[n - 1] * statistics.stdev(differences) / n**0.5
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def main():
    runs = {}
    for line in (pathlib.Path(__file__).parent / "results.jsonl").read_text().splitlines():
        run = json.loads(line)
        runs.setdefault(run["label"], {})[run["seed"]] = run
    print("| | nearest | linear | head | seeds |\n|---|---|---|---|---|")
    for data, ours, theirs in PAIRS:
        a, b = runs[f"{data}/{ours}"], runs[f"{data}/{theirs}"]
        seeds = sorted(a.keys() & b.keys())
        of = [interval([a[s][what] - b[s][what] for s in seeds]) for what in ("nearest", "linear", "head")]
        print(f"| {data}: {ours} less {theirs} | {' | '.join(of)} | {len(seeds)} |")


if __name__ == "__main__":
    main()
