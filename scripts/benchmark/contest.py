"""Contestants, which are processes that are talked to in lines, and how they are timed in turns.

The protocol is described in tests/src/bench/mod.rs.
"""

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path


class ContestError(Exception):
    """A contestant failed, or results differ."""


# Every library that a contestant uses has its own idea of threads.
THREAD_VARIABLES = [
    "RAYON_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RTEN_NUM_THREADS",
]


def surroundings(threads):
    """Environment variables of a process that is to use that many threads."""
    return dict(os.environ, **{name: str(threads) for name in THREAD_VARIABLES})


@dataclass
class Contestant:
    """A command that takes part in a row. Ours have the name of their backend or way."""

    name: str
    command: list
    threads: int = 1
    ours: bool = False
    # How many times as long as ours it should take; none where no goal was set.
    goal: float | None = None


@dataclass
class Timed:
    """What a contestant of a row came to."""

    contestant: Contestant
    description: str
    seconds: list = field(default_factory=list)
    parts: list = field(default_factory=list)
    # Bytes of resident memory before the first run, and the most since.
    before: int = 0
    peak: int = 0


class Process:
    """A contestant that runs."""

    def __init__(self, contestant):
        self.contestant = contestant
        self.process = subprocess.Popen(
            [str(word) for word in contestant.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=surroundings(contestant.threads),
        )
        self.description = self.answer()["ready"]
        self.before = self.memory()["VmRSS"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            words = " ".join(map(str, self.contestant.command))
            raise ContestError(f"`{words}` ended with {code}; see its message above")
        return json.loads(line)

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # Its end is seen when the answer is read.
        return self.answer()

    def memory(self):
        """Lines of /proc/PID/status that end with kB, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        rows = (line.split() for line in status.splitlines())
        return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if row[-1:] == ["kB"]}

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def order(count, turn):
    """The order of a turn: every second one backwards, so that none always comes first."""
    return list(range(count)) if turn % 2 == 0 else list(reversed(range(count)))


def timed_in_turns(contestants, runs, check, note):
    """Runs all contestants in turns and returns a `Timed` for each.

    `check` is given the running processes before the first run that counts.
    """
    processes = []
    try:
        for contestant in contestants:
            processes.append(Process(contestant))
        check(processes)
        results = [Timed(p.contestant, p.description, before=p.before) for p in processes]
        for process in processes:
            process.ask("run")
        for turn in range(runs):
            note(f"{turn + 1}/{runs}")
            for index in order(len(processes), turn):
                answer = processes[index].ask("run")
                results[index].seconds.append(answer["seconds"])
                results[index].parts.append(answer["parts"])
        for process, result in zip(processes, results):
            result.peak = process.memory()["VmHWM"]
        return results
    finally:
        for process in processes:
            process.close()


def started_in_turns(contestants, runs, note):
    """Starts every contestant anew for each run; a run ends with its first line of output."""
    results = [Timed(contestant, "") for contestant in contestants]
    for turn in range(-1, runs):
        note(f"{turn + 1}/{runs}")
        for index in order(len(contestants), turn):
            contestant = contestants[index]
            command = [str(word) for word in contestant.command]
            environment = surroundings(contestant.threads)
            begun = time.perf_counter()
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment
            ) as process:
                line = process.stdout.readline()
                seconds = time.perf_counter() - begun
            if not line or process.returncode != 0:
                raise ContestError(f"`{' '.join(command)}` failed; see its message above")
            # The first start fills the file cache for all.
            if turn >= 0:
                results[index].seconds.append(seconds)
    return results
