"""``python -m tests.cluster.bed build|up|down``: the test cluster by hand, in the repository, by Airflow's Python."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.cluster.bed import build, cluster, image, packages
from tests.cluster.bed.claims import claim_objects

NAMESPACE, CLAIM = "ml", "training"
"""What the README and the example work with."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.bed", description="A real Kubernetes on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build and install what it needs, and start nothing")
    commands.add_parser("up", help="start it; FINETUNE_TRAIN_PYTHON is the interpreter that trains in its pods")
    commands.add_parser("down", help="end it, and remove every trace of it")
    command = parser.parse_args().command
    if reason := cluster.impossible():
        print(f"Not here: {reason}.", file=sys.stderr)
        return 0 if command == "build" else 1
    say = cluster.say_with_time()
    if command == "build":
        build.binaries(say)
        packages.install(say)
        image.images(say)
    elif command == "up":
        up(say)
    else:
        with build.locked("start"):
            cluster.down()
        say("the cluster is gone")
    return 0


def up(say: build.Say) -> None:
    python = os.environ.get("FINETUNE_TRAIN_PYTHON")
    with build.locked("start"):
        found = cluster.running()
        if found:
            say("the cluster is running already")
            # It was perhaps started by tests; now it stays.
            (found.folder / "ends-with-its-users").unlink(missing_ok=True)
        else:
            found = cluster.up(say, Path(python) if python else None)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        found.apply(namespace, *claim_objects(found, NAMESPACE, CLAIM, "ReadWriteMany"))
        say(f"the claim {CLAIM} of namespace {NAMESPACE} is the folder {found.work_dir / NAMESPACE / CLAIM}")
    if not python:
        say("FINETUNE_TRAIN_PYTHON is not set: there is no runtime training-hub to train with")
    print(f"export KUBECONFIG={found.kubeconfig} PATH={found.programs}:$PATH")


if __name__ == "__main__":
    sys.exit(main())
