"""Start and end the cluster's processes, and leave nothing of them on the machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.bed import supervisor

MOUNT_POINTS = ("/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
"""Folders that containerd, its network plugins and the kubelet have built in."""
BRIDGE = "finetune-bed"
CGROUP = "finetune-bed"
NODE = "node1"


class ClusterError(Exception):
    """The cluster does not do what it should; the message has the end of the log that says why."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """The processes of one cluster, all below one supervisor.

    :param folder: everything that the cluster writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Make the folder and start the supervisor, which outlives this process."""
        self.folder.mkdir(mode=0o700)
        for name in ("services", "running", "exited", "logs", "tmp"):
            (self.folder / name).mkdir()
        made = [path for path in MOUNT_POINTS if not Path(path).exists()]
        (self.folder / "made.json").write_text(json.dumps(made))
        for path in MOUNT_POINTS:
            Path(path).mkdir(parents=True, exist_ok=True)
        (self.folder / "mount-points.json").write_text(json.dumps(MOUNT_POINTS))
        hosts = Path("/etc/hosts").read_text()
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {NODE}\n{hosts}")
        # The shell notes its pid and becomes unshare, so that there is no moment in which a process runs unrecorded.
        script = 'echo $$ >"$0/supervisor.pid"; exec unshare --mount --pid --fork --kill-child --mount-proc "$@"'
        program = [sys.executable, "-I", supervisor.__file__, str(self.folder)]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
        }
        with open(self.folder / "logs" / "supervisor.log", "wb") as log:
            subprocess.Popen(
                ["sh", "-c", script, str(self.folder), *program],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self, name: str, *argv: object, env: dict[str, str] | None = None) -> None:
        """Have a process started, without waiting for it."""
        service = self.folder / "services" / f"{name}.json"
        unfinished = service.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"argv": [str(item) for item in argv], "env": env or {}}))
        unfinished.rename(service)

    def stop(self, name: str, *, forget: bool = True) -> None:
        """End a process and wait until it is gone; with ``forget=False`` it can be started again by `resume`."""
        service = self.folder / "services" / f"{name}.json"
        service.rename(service.with_suffix(".stopped"))
        if forget:
            service.with_suffix(".stopped").unlink()
        self.wait(name, lambda: not (self.folder / "running" / name).exists(), "ended")

    def resume(self, name: str) -> None:
        """Start a stopped process again, without waiting for it."""
        service = self.folder / "services" / f"{name}.json"
        service.with_suffix(".stopped").rename(service)

    def kill(self, name: str) -> None:
        """End a process as a machine that fails does, and wait until it is gone; `revive` starts it again."""
        os.kill(self._pid(name), signal.SIGKILL)
        while not (self.folder / "exited" / name).exists():
            time.sleep(0.05)

    def revive(self, name: str) -> None:
        """Start a killed process again, without waiting for it."""
        (self.folder / "exited" / name).unlink()

    def _pid(self, name: str) -> int:
        wanted = json.loads((self.folder / "services" / f"{name}.json").read_text())["argv"]
        outer = int((self.folder / "supervisor.pid").read_text())
        for inner in _children(outer):
            for pid in _children(inner):
                if Path("/proc", str(pid), "cmdline").read_text().split("\0")[:-1] == wanted:
                    return pid
        raise ClusterError(f"{name} does not run:\n{self.log(name)}")

    def wait(self, name: str, ready: Callable[[], bool], what: str = "ready", timeout: float = 60) -> None:
        """Wait until a process is ready.

        :param ready: asked again and again; errors of the connection and of commands mean "not yet".
        :raises ClusterError: if it ends before, or takes longer; with the end of its log.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                if ready():
                    return
                trouble = ""
            except (OSError, subprocess.SubprocessError) as error:
                trouble = f" ({error})"
            exited = self.folder / "exited" / name
            if exited.exists():
                raise ClusterError(f"{name} ended with status {exited.read_text().strip()}:\n{self.log(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} is not {what} after {timeout:.0f} s{trouble}:\n{self.log(name)}")
            time.sleep(0.1)

    def log(self, name: str, characters: int = 3000) -> str:
        """The end of a process's log."""
        for stem in (name, "supervisor"):
            path = self.folder / "logs" / f"{stem}.log"
            if path.exists() and (text := path.read_text(errors="replace")):
                return text[-characters:]
        return "(its log is empty)"

    def end(self) -> None:
        """End everything and remove every trace; also of a cluster whose start or end was interrupted."""
        if self.folder.exists():
            _kill(self.folder)
            _unmount(self.folder)
        _remove_cgroups()
        subprocess.run(["ip", "link", "delete", BRIDGE], stderr=subprocess.DEVNULL, check=False)
        made = self.folder / "made.json"
        for path in json.loads(made.read_text()) if made.exists() else []:
            # What is not empty has found another user in the meantime.
            if Path(path).is_dir() and not any(Path(path).iterdir()):
                Path(path).rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


def _kill(folder: Path) -> None:
    """Kill the supervisor; the kernel takes every process of its namespace with it."""
    try:
        pid = int((folder / "supervisor.pid").read_text())
        if str(folder) not in Path("/proc", str(pid), "cmdline").read_text():
            return  # it is gone, and its number has been given to another process
        children = _children(pid)
    except (OSError, ValueError):
        return
    pids = [pid, *children]
    for each in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    while any(_alive(each) for each in pids):
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [*map(int, Path("/proc", str(pid), "task", str(pid), "children").read_text().split())]


def _alive(pid: int) -> bool:
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _unmount(folder: Path) -> None:
    """Unmount what lies in the folder, so that removing it never reaches through a mount."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
        subprocess.run(["umount", path], check=True)


def _remove_cgroups() -> None:
    for top in [*Path("/sys/fs/cgroup").glob(CGROUP), *Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")]:
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):  # the kernel lets go of an ended process a moment later
                os.rmdir(path)
