"""A program in the place of ``python3``, for trainings of which only the life of their pods matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.outcome import Failure, Outcome

PROGRAM = """\
#!/bin/sh
# Ends as the test says, and saves a checkpoint, which takes a while, where it is told to end before.
here=$(dirname "$0")
trap 'sleep 2; echo "$HOSTNAME" >> "$here/saved"; exit 143' TERM
echo "$HOSTNAME" >> "$here/begun"
until [ -f "$here/outcome.json" ]; do sleep 0.1; done
cat "$here/outcome.json" > /dev/termination-log
! grep -q '"status":"failed"' "$here/outcome.json"
"""

SUCCESS = Outcome(status="succeeded", model_uri="pvc://work/model", metrics={"loss": 1.5})
FAILURE = Outcome(
    status="failed",
    failure=Failure(failure_class="infrastructure", cause="library_crash", message="It ended.", cure="Look there"),
)


class StandIn:
    """The program of one task, on the claim ``work``.

    :param claim: the claim's folder on this machine.
    :param name: what tells it from those of other tasks.
    """

    def __init__(self, claim: Path, name: str) -> None:
        self._folder = claim / "stand-in" / name
        self._folder.mkdir(parents=True)
        program = self._folder / "python3"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        path = f"/mnt/work/stand-in/{name}:/usr/bin:/bin"
        self.arguments: dict[str, Any] = {
            "pvc_path": "pvc://work/runs",
            "dataset": "pvc://work/train.jsonl",
            "training_base_model": "org/model",
            "training_effective_batch_size": 8,
            "training_envs": {"PATH": path},
            "training_resource_gpu_per_worker": 0,
            "training_resource_cpu_per_worker": "50m",
            "training_resource_memory_per_worker": "32Mi",
            "progress_interval": 1,
        }

    def end(self, outcome: Outcome) -> None:
        """Let what trains, and what begins to, end so."""
        draft = self._folder / "draft"
        draft.write_text(outcome.to_small_json())
        draft.rename(self._folder / "outcome.json")

    def go_on(self) -> None:
        """Let what begins to train do so until it is ended."""
        (self._folder / "outcome.json").unlink()

    def has_begun(self, pod: str) -> bool:
        """Whether this pod would save when it is told to end: it is ``Running`` a moment before.

        :param pod: its name, which begins with its host name.
        """
        return self._is_in("begun", pod)

    def has_saved(self, pod: str) -> bool:
        """Whether this pod has saved a checkpoint when it was told to end.

        :param pod: its name, which begins with its host name.
        """
        return self._is_in("saved", pod)

    def _is_in(self, name: str, pod: str) -> bool:
        file = self._folder / name
        return file.exists() and any(pod.startswith(host) for host in file.read_text().split())
