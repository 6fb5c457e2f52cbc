"""The first process of the cluster's own process and mount namespace: runs what lies in ``services/``.

A file ``services/NAME.json`` with ``argv`` and ``env`` is a process that shall run; taking the file away ends it.
``running/NAME`` exists as long as it does, ``exited/NAME`` says how it ended where nobody asked for it.

The kernel ends every process of a process namespace with its first one, containers included, and takes a mount
namespace apart when the last process in it is gone. So ending this one process ends the whole cluster.

Run by ``unshare`` as a program, with nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 2.0
"""Seconds between SIGTERM and SIGKILL. The API server alone would drain its watches for a minute."""

KERNEL = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""Settings of the machine that the kubelet would change. It is shown files that have the wanted values already."""


def bind(source: Path, target: str) -> None:
    subprocess.run(["mount", "--bind", str(source), target], check=True)


def hide_machine(folder: Path) -> None:
    """Put folders of the cluster over those that containerd and kubelet have built in, for this namespace only."""
    for number, target in enumerate(json.loads((folder / "mount-points.json").read_text())):
        source = folder / "system" / str(number)
        source.mkdir(parents=True)
        bind(source, target)
    bind(folder / "hosts", "/etc/hosts")
    for number, (name, value) in enumerate(KERNEL.items()):
        if Path("/proc/sys", name).exists():
            source = folder / "system" / f"kernel-{number}"
            source.write_text(f"{value}\n")
            bind(source, f"/proc/sys/{name}")


class Supervisor:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.deadlines: dict[str, float] = {}

    def start(self, name: str) -> None:
        service = json.loads((self.folder / "services" / f"{name}.json").read_text())
        (self.folder / "exited" / name).unlink(missing_ok=True)
        with open(self.folder / "logs" / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                service["argv"],
                env={**os.environ, **service["env"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.folder / "running" / name).touch()

    def stop(self, name: str) -> None:
        now = time.monotonic()
        if name not in self.deadlines:
            self.deadlines[name] = now + PATIENCE
            self.processes[name].terminate()
        elif now > self.deadlines[name]:
            self.processes[name].kill()

    def reap(self) -> None:
        """Collect what has ended, orphans of containers included, which come to the first process."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for name, process in list(self.processes.items()):
                if process.pid == pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    self.ended(name, process.returncode)

    def ended(self, name: str, status: int) -> None:
        del self.processes[name]
        if self.deadlines.pop(name, None) is None:
            (self.folder / "exited" / name).write_text(f"{status}\n")
        (self.folder / "running" / name).unlink()

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while True:
            self.reap()
            wanted = {path.stem for path in (self.folder / "services").glob("*.json")}
            for name in wanted - self.processes.keys():
                if not (self.folder / "exited" / name).exists():
                    self.start(name)
            for name in self.processes.keys() - wanted:
                self.stop(name)
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)


if __name__ == "__main__":
    hide_machine(Path(sys.argv[1]))
    Supervisor(Path(sys.argv[1])).run()
