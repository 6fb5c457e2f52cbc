"""One training as a process of this machine: its files, its environment, its output, its outcome."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.exceptions import training_error
from airflow_provider_finetune.launchers.local import command, environment, failure_without_outcome
from airflow_provider_finetune.launchers.transcript import Transcript
from airflow_provider_finetune.process import RunnerProcess

_RUNNER = "finetune-runner.pyz"
_TAIL_LINES, _TAIL_BYTES = 200, 128 << 10
"""Of ``train.log``, shown where the runner could not do so."""


class LocalTraining:
    """Runs one :class:`TrainingSpec` with an interpreter that has training-hub.

    :param spec: what to train; its ``work_dir`` is made.
    :param python: path or name of the interpreter; ``None`` is this one.
    :param training_envs: the documented parameter.
    :param secrets: resolved values by variable name.
    :param log: gets the level and the text of each readable line of the runner.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        *,
        python: str | None,
        training_envs: Mapping[str, str],
        secrets: Mapping[str, str],
        log: Callable[[int, str], None],
    ) -> None:
        self.spec = spec
        self.work_dir = Path(spec.work_dir)
        self._log = log
        self._transcript = Transcript()
        self._message = self.work_dir / "termination-message"
        interpreter = self._interpreter(python)
        self._process = RunnerProcess(
            command(
                interpreter,
                runner=str(self.work_dir / _RUNNER),
                spec=str(self.work_dir / "spec.json"),
                termination_message=str(self._message),
            ),
            env=environment(
                os.environ,
                same_interpreter=interpreter == os.path.abspath(sys.executable),
                training_envs=training_envs,
                secrets=secrets,
            ),
        )

    def run(self, timeout: float | None = None) -> Outcome:
        """Train, and return what came of it; a failure is an outcome too.

        :param timeout: seconds after which the runner is asked to end.
        :raises TrainingFailed: the work directory cannot be written or the interpreter cannot be started.
        """
        self._write_files()
        try:
            exit_status = self._process.run(self._take, timeout=timeout)
        except OSError as error:
            raise self._error("local_python", f"The runner could not be started: {error}.") from error
        finally:
            self._forget_credentials()
        outcome = self._read_outcome() or self._without_outcome(exit_status)
        if self._process.timed_out and outcome.status == "failed":
            return Outcome(status="failed", work_dir=outcome.work_dir, failure=_timed_out(timeout))
        return outcome

    def _without_outcome(self, exit_status: int) -> Outcome:
        """Say why the runner has ended, with the end of its log, which it has not shown itself."""
        logs = sorted(self.work_dir.glob("*/train.log"), key=os.path.getmtime)
        lines = _last_lines(logs[-1]) if logs else []
        for line in (f"::group::The last {len(lines)} lines of {logs[-1]}", *lines, "::endgroup::") if lines else ():
            self._log(logging.INFO, line)
        killed = self._process.terminating
        failure = failure_without_outcome(self._transcript.last_lines, exit_status, killed=killed)
        work_dir = logs[-1].parent if logs else self.work_dir
        return Outcome(status="failed", work_dir=str(work_dir), failure=failure)

    def terminate(self) -> None:
        """Ask the runner to end; may be called at any time and from a signal handler."""
        self._process.terminate()

    def _interpreter(self, python: str | None) -> str:
        found = shutil.which(os.path.expanduser(python or sys.executable))
        if found is None:
            raise self._error("local_python", f"local_python={python!r} is no program on this machine.")
        return os.path.abspath(found)

    def _error(self, cause: str, message: str) -> Exception:
        cure = "Name a Python interpreter that has training-hub, by local_python or [finetune] local_python."
        failure = Failure(failure_class="user", cause=cause, message=message, cure=cure)
        return training_error(failure, str(self.work_dir))

    def _write_files(self) -> None:
        from airflow_provider_finetune.archive import runner_bytes

        try:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            self._message.unlink(missing_ok=True)
            _write(self.work_dir / _RUNNER, runner_bytes())
            _write(self.work_dir / "spec.json", self.spec.to_json().encode())
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            failure = Failure(
                failure_class="resources" if full else "user",
                cause="disk_full" if full else "work_dir_not_writable",
                message=f"The work directory {self.work_dir} cannot be written: {error}.",
                cure="Free some space there, or name another root by pvc_path or [finetune] work_dir."
                if full
                else "Name a directory that the worker may write, by pvc_path or [finetune] work_dir.",
            )
            raise training_error(failure, str(self.work_dir)) from error

    def _forget_credentials(self) -> None:
        """Keep the spec without signed links, which the runner has needed and nobody needs any more."""
        if (shown := self.spec.shown()) != self.spec:
            with suppress(OSError):
                _write(self.work_dir / "spec.json", shown.to_json().encode())

    def _take(self, line: str) -> None:
        said = self._transcript.take(line)
        if said:
            self._log(*said)

    def _read_outcome(self) -> Outcome | None:
        """Return the full outcome, or the small one where the full one cannot be read."""
        # What it has said to us comes first: another try's runner, thought lost, may write to the same file.
        small = self._transcript.outcome or _outcome_in(self._message)
        if small is None or small.work_dir is None:
            return small
        return _outcome_in(Path(small.work_dir) / "outcome.json") or small


def _outcome_in(path: Path) -> Outcome | None:
    try:
        return Outcome.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return []


def _write(path: Path, content: bytes) -> None:
    # A reader sees the old file or the new one, whole: another try's runner may still hold the old one.
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_bytes(content)
    os.replace(new, path)


def _timed_out(timeout: float | None) -> Failure:
    return Failure(
        failure_class="resources",
        cause="training_timeout",
        message=f"The training was ended after training_timeout={timeout:g} s.",
        cure="Raise training_timeout, or train less (training_num_epochs, fewer rows).",
    )
