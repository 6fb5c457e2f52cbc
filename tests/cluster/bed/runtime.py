"""The training runtime that is shipped, made to run with the machine's own Python instead of a large image."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.bed.node import EMPTY_IMAGE

SHIPPED = Path(__file__).parents[3] / "docs" / "kubernetes" / "runtime.yaml"
SYSTEM = ("/usr", "/lib", "/lib64", "/bin")
"""Programs and libraries; what a machine does not have is left out."""


def load(python: Path) -> dict[str, Any]:
    """Read the shipped runtime, and put an interpreter of this machine into its empty image.

    :param python: the interpreter of the environment that trains; ``python3`` in the pods.
    """
    runtime: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    folders = _folders(python)
    container["image"] = EMPTY_IMAGE
    container["env"] = [{"name": "PATH", "value": f"{python.parent}:/usr/local/bin:/usr/bin:/bin"}]
    container["volumeMounts"] = [
        {"name": f"machine-{number}", "mountPath": path, "readOnly": True} for number, path in enumerate(folders)
    ]
    pod["volumes"] = [{"name": f"machine-{number}", "hostPath": {"path": path}} for number, path in enumerate(folders)]
    return runtime


def _folders(python: Path) -> list[str]:
    """The folders that the interpreter needs: the system's, its environment, and what that was made from."""
    ask = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix]))"
    answer = subprocess.run([python, "-c", ask], stdout=subprocess.PIPE, text=True, check=True)
    # Links on the way are followed by the programs in the pod too, so what they point to must be there.
    own = [Path(path) for path in json.loads(answer.stdout)]
    own += [path.resolve() for path in own] + [python.resolve().parent.parent]
    folders = [path for path in SYSTEM if Path(path).exists()]
    for path in sorted(set(own)):
        if not any(path.is_relative_to(folder) for folder in folders):
            folders.append(str(path))
    return folders
