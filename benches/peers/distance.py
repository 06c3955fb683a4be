#!/usr/bin/env python3
"""Times exact nearest neighbours in other libraries and here, in the same rounds.

usage: distance.py BENCH [MxD ...] [--threads N] [--rounds N] [--backend NAME]

BENCH is the program that `cargo bench --bench distance --no-run` names. Every round runs each
library once, so that all meet the same load; times are of the processor, the least of the rounds.
For everybody a search counts as 2 m^2 d operations. Ours finds the nearest of the same label and
of another, the others the nearest of all (torch: both too, where it says so).
"""

import argparse
import statistics

import rounds

SIZES = ["1000x64", "1000x1024", "1000x4096", "5000x64", "5000x1024", "10000x256"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("bench")
parser.add_argument("sizes", nargs="*", default=SIZES)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--backend", action="append", help="of ours [default: the best set]")
args = parser.parse_args()

rounds.threads(args.threads)

import numpy as np

faiss, torch, sklearn = map(rounds.optional, ("faiss", "torch", "sklearn.neighbors"))
if faiss:
    faiss.omp_set_num_threads(args.threads)
if torch:
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)


def peers(m, d):
    """What the other libraries do for a set of this size."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((m, d), dtype=np.float32), rng.integers(0, 10, m)
    copy = x.copy()  # Otherwise numpy makes half of the products.

    def index():
        index = faiss.IndexFlatL2(d)
        index.add(x)
        return index.search(x, 2)  # The first is the row itself.

    def gemm():
        norms = np.einsum("ij,ij->i", x, x)
        for i in range(0, m, 1024):
            tile = x[i : i + 1024] @ copy.T
            tile *= -2
            tile += norms
            rows = np.arange(len(tile))
            tile[rows, i + rows] = np.inf
            tile.argmin(1)

    def syrk():
        norms, products = np.einsum("ij,ij->i", x, x), x @ x.T
        for i in range(0, m, 256):
            tile = norms - 2 * products[i : i + 256]
            rows = np.arange(len(tile))
            tile[rows, i + rows] = np.inf
            tile.argmin(1)

    def tiles(both):
        features, classes = torch.from_numpy(x), torch.from_numpy(labels)
        norms = (features * features).sum(1)
        for i in range(0, m, 2048):
            part = features[i : i + 2048]
            tile = torch.addmm(norms.unsqueeze(0), part, features.t(), alpha=-2)
            rows = torch.arange(len(tile))
            tile[rows, i + rows] = float("inf")
            if both:
                same = classes[i : i + 2048, None] == classes[None, :]
                tile.masked_fill(~same, float("inf")).min(1)
                tile.masked_fill(same, float("inf")).min(1)
            else:
                tile.min(1)

    yield "numpy gemm + argmin", gemm
    yield "numpy syrk + argmin", syrk
    if faiss:
        yield "faiss k = 2", index
    if torch:
        yield "torch", lambda: tiles(False)
        yield "torch same + other", lambda: tiles(True)
    if sklearn:
        brute = sklearn.neighbors.NearestNeighbors(n_neighbors=1, algorithm="brute").fit(x)
        yield "sklearn", lambda: brute.kneighbors(return_distance=False)


print(f"{args.threads} thread(s), {args.rounds} rounds, GFLOP per CPU-second (least time)")
for size in args.sizes:
    m, d = map(int, size.split("x"))
    backends = args.backend or ["cpu"]
    command = [args.bench, "--threads", str(args.threads), "--serve", size]
    ours = {f"sepal {name}": rounds.Ours(*command, name) for name in backends}
    others = {name: rounds.Peer(work) for name, work in peers(m, d)}
    times = rounds.run(ours | others, args.rounds)
    rate = {name: 2e-9 * m * m * d / min(cpu for _, cpu in t) for name, t in times.items()}
    best = max(others, key=rate.get)
    for name, t in times.items():
        wall = 1e3 * statistics.median(wall for wall, _ in t)
        mark = f"  {rate[name] / rate[best]:.2f} of {best}" if name in ours else ""
        print(f"{size:>10} {name:<20} {wall:9.2f} ms {rate[name]:7.1f}{mark}", flush=True)
