"""The environment of the child: what the libraries expect of a machine and a container may lack."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from pathlib import Path

_DEFAULTS = {
    "PYTHONUNBUFFERED": "1",
    # TRL tells the hub of each training, also where model and data come from elsewhere.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # OpenMP's threads spin while they wait for each other: where another process wants a core, each layer waits for a
    # thread that has none, and a training was seen to take several times longer. Asleep they leave the core; where
    # nothing else runs that costs some 5 % (135 M parameters, 2 cores), and training_envs may say ACTIVE.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def child_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of the child; what is set outside wins where it can be used.

    A container may run under a user id that no passwd file knows, with ``/`` as its home and a root file system that
    cannot be written. Libraries then fail at a cache or a temporary file.

    :param scratch: for what has no other place; it goes when the training is over.
    """
    root = str(Path(__file__).parents[2])
    return {
        **_DEFAULTS,
        # What torchrun trains with, also where the one on PATH belongs to another environment.
        "PYTHON_EXEC": sys.executable,
        # Processed data is this attempt's own; in the user's cache each training would leave a copy.
        "HF_DATASETS_CACHE": str(scratch / "cache"),
        **os.environ,
        **_home(scratch),
        **_temporary(scratch),
        **_name(),
        # training-hub calls torchrun by its name, and an interpreter that is named by its path may not be on PATH.
        "PATH": os.pathsep.join(filter(None, (os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))),
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        # "-m" would put the current directory first, where a file datasets.py poses as the library.
        "PYTHONSAFEPATH": "1",
    }


def _home(scratch: Path) -> dict[str, str]:
    home = os.path.expanduser("~")
    return {} if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK) else _made("HOME", scratch / "home")


def _temporary(scratch: Path) -> dict[str, str]:
    try:
        # Not what TMPDIR says, which may not be there.
        return {"TMPDIR": tempfile.gettempdir()}
    except FileNotFoundError:
        return _made("TMPDIR", scratch / "tmp")


def _made(variable: str, directory: Path) -> dict[str, str]:
    directory.mkdir(parents=True, exist_ok=True)
    return {variable: str(directory)}


def _name() -> dict[str, str]:
    """PyTorch names a cache by the user, and ends where the user has no name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        return {"LOGNAME": f"user-{os.getuid()}"}
    return {}
