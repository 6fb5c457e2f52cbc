"""``python -m tests.faults.soak --tasks N --seed S``: many tasks under faults, and what they show, as a table."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.bed import cluster as bed
from tests.faults.arena import LAUNCHERS, Arena, arena
from tests.faults.batch import Batch
from tests.faults.killer import PAUSE, Killer
from tests.faults.plan import Plan
from tests.faults.record import Record
from tests.faults.verdict import violations

SIZE = 50
"""Tasks in a batch."""

_SECONDS_PER_TASK = 40.0
_SECONDS_AT_LEAST = 240.0


@dataclass
class Figures:
    """What a run shows. ``waits``: seconds from the end of a task's last program to the end of the task."""

    seed: int
    tasks: int = 0
    tries: int = 0
    seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    waits_without: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Count a batch, and judge it."""
        self.tasks += len(record.tasks)
        self.tries += sum(task.tries for task in record.tasks)
        self.states.update(str(task.state) for task in record.tasks)
        self.waits += _waits(record)
        self.violations += violations(record)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the table, row by row."""
        yield "tasks, tries", f"{self.tasks}, {self.tries}"
        yield "ended as", _counts(self.states)
        yield "minutes", f"{self.seconds / 60:.1f}"
        yield "requests through the proxy", f"{self.requests.total()}: {_counts(self.requests)}"
        yield "faults", f"{self.faults.total()}: {_counts(self.faults)}"
        yield "kills", f"{self.kills.total()}: {_counts(self.kills)}"
        yield "from a program's end to its task's, without faults", _spread(self.waits_without)
        yield "the same under faults", _spread(self.waits)
        yield "violations", str(len(self.violations))


def soak(
    launcher: str,
    tasks: int,
    seed: int,
    *,
    baseline: int = 0,
    pause: tuple[float, float] = PAUSE,
    hangs: bool = True,
    keep: Path | None = None,
) -> Figures:
    """Run tasks in batches under faults and return what was seen.

    :param launcher: what runs them.
    :param tasks: how many.
    :param seed: of faults, kills and parts.
    :param baseline: so many run without faults before, for comparison.
    :param pause: seconds between two kills.
    :param hangs: workers also hang for a while, which takes half a minute each time.
    :param keep: folder for Airflow's logs, the journals and the audit, where there is a violation.
    """
    figures, say = Figures(seed), bed.say_with_time()
    with bed.shared(say) as cluster, arena(cluster, launcher, Plan(seed)) as where:
        say("Airflow runs behind the proxy")
        if baseline:
            calm = _recorded(where, Batch(where, 1_000_000, baseline, seed), None)
            figures.waits_without, figures.violations = _waits(calm), violations(calm)
            say(f"{baseline} tasks without faults: {_spread(figures.waits_without)}")
        began = time.monotonic()
        for first in range(0, tasks, SIZE):
            killer = Killer(seed + first, cluster, where.airflow, pause, hangs=hangs)
            figures.add(_recorded(where, Batch(where, first, min(SIZE, tasks - first), seed), killer))
            figures.kills += killer.kills
            figures.seconds = time.monotonic() - began
            say(f"{figures.tasks} tasks, {figures.seconds:.0f} s, {len(figures.violations)} violations")
        figures.requests, figures.faults = where.proxy.requests, where.proxy.faults
        figures.violations += [f"a secret is in {file}" for file in where.files_with_secrets()]
        if keep and figures.violations:
            where.save(keep)
    return figures


def _recorded(where: Arena, batch: Batch, killer: Killer | None) -> Record:
    where.proxy.clean = killer is None
    with killer or nullcontext():
        batch.run(max(_SECONDS_AT_LEAST, _SECONDS_PER_TASK * len(batch.tasks)))
    where.proxy.clean = True
    return batch.record()


def _waits(record: Record) -> list[float]:
    last = {program.number: program.ended for program in sorted(record.programs, key=lambda each: each.began)}
    return [task.ended - end for task in record.tasks if task.ended and (end := last.get(task.number))]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "not measured"
    return f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Many tasks under faults.")
    parser.add_argument("--tasks", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of faults, kills and what the tasks play (default: 1)")
    parser.add_argument("--launcher", choices=sorted(LAUNCHERS), default="trainjob")
    parser.add_argument("--keep", type=Path, help="folder for Airflow's logs where there is a violation")
    arguments = parser.parse_args()
    if reason := bed.impossible():
        print(f"Not here: {reason}.", file=sys.stderr)
        return 1
    figures = soak(arguments.launcher, arguments.tasks, arguments.seed, baseline=10, keep=arguments.keep)
    width = max(len(name) for name, _ in figures.rows())
    for name, value in figures.rows():
        print(f"{name:{width}}  {value}")
    for violation in figures.violations:
        print(violation)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
