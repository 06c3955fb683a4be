"""What the programs here share: jobs that are run in turn, so that all meet the same load."""

import os
import subprocess
import sys
import time


def threads(count):
    """So many threads for every library that is imported after this."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "RAYON"):
        os.environ[f"{name}_NUM_THREADS"] = str(count)


def optional(name):
    """A library, or nothing where it is not installed."""
    try:
        return __import__(name)
    except ImportError as error:
        print(f"without {name}: {error}", file=sys.stderr)
        return None


class Ours:
    """A bench that serves: it answers each line with its seconds, wall and CPU."""

    def __init__(self, *command, line=""):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.line = line
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"{command[0]} does not serve")

    def round(self):
        print(self.line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the bench ended with status {self.process.wait()}")
        return tuple(map(float, answer.split()))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Peer:
    """A function of this process, warmed up."""

    def __init__(self, work):
        self.work = work
        work()

    def round(self):
        cpu, wall = time.process_time(), time.perf_counter()
        self.work()
        return time.perf_counter() - wall, time.process_time() - cpu

    def close(self):
        pass


def run(jobs, rounds):
    """The wall and CPU seconds of each job in each round."""
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(job.round())
    for job in jobs.values():
        job.close()
    return times
