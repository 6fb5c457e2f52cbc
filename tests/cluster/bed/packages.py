"""Debian packages: what the node needs beside the programs that are built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster.bed.build import Say

PACKAGES = {
    "/usr/bin/etcd": "etcd-server",
    "/usr/bin/containerd": "containerd",
    "/usr/sbin/runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/sbin/conntrack": "conntrack",
    "/sbin/ip": "iproute2",
    "/usr/bin/buildah": "buildah",
    "/usr/sbin/debootstrap": "debootstrap",
}
"""A file of each package, and the package. The last two build images, from nothing and without a registry."""

NO_SERVICES = Path("/usr/sbin/policy-rc.d")
"""Debian asks this program whether a package may start its service while it is installed."""


class MissingPackages(Exception):
    """A program is missing and cannot be installed here."""


def install(say: Say) -> None:
    """Install what is missing, and start none of it.

    :raises MissingPackages: if there is no apt-get, or it fails.
    """
    missing = [package for file, package in PACKAGES.items() if not Path(file).exists()]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise MissingPackages(f"This machine has no {', '.join(missing)} and no apt-get: install them as Debian does.")
    say(f"installing {' '.join(missing)}")
    ours = not NO_SERVICES.exists()
    if ours:
        NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
        NO_SERVICES.chmod(0o755)
    try:
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *missing)
    finally:
        if ours:
            NO_SERVICES.unlink()


def _apt(*arguments: str) -> None:
    command = ["apt-get", "-qq", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if answer.returncode:
        raise MissingPackages(f"`{' '.join(command)}` failed:\n{answer.stdout[-3000:]}")
