"""``python finetune-runner.pyz run|check --spec spec.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from airflow_provider_finetune.contract.version import __version__
from airflow_provider_finetune.runner.log import die_with_parent
from airflow_provider_finetune.runner.stopping import GRACE_SECONDS
from airflow_provider_finetune.runner.tries.workdir import WorkDir


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    :param argv: arguments, ``sys.argv`` where left out.
    :return: exit status: 0 with a model (or a passed check), 1 with a failure, which the outcome explains.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command in ("work", "launch"):
        from airflow_provider_finetune.runner import launch, worker

        die_with_parent()
        work_dir = WorkDir(arguments.work_dir)
        if arguments.command == "launch":
            return launch.main(work_dir)
        return worker.main(work_dir, only=arguments.only, every_row=arguments.all)
    from airflow_provider_finetune.runner import attempt

    if arguments.exit_with_parent:
        die_with_parent()
    return attempt.run(
        arguments.spec_json if arguments.spec is None else arguments.spec,
        check_only=arguments.command == "check",
        every_row=arguments.all,
        termination_message=arguments.termination_message,
        grace=arguments.grace_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune-runner", description=f"Fine-tunes one model with training-hub (version {__version__})."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("run", "check, train, prove and publish"), ("check", "only what can be known before")):
        command = commands.add_parser(name, help=what)
        spec = command.add_mutually_exclusive_group(required=True)
        spec.add_argument("--spec", type=Path, metavar="FILE", help="TrainingSpec, JSON")
        spec.add_argument("--spec-json", metavar="TEXT", help="the same as text")
        command.add_argument(
            "--termination-message", type=Path, metavar="FILE", help="where the small form of the outcome goes as well"
        )
        command.add_argument(
            "--grace-seconds",
            type=float,
            default=GRACE_SECONDS,
            metavar="N",
            help="time from SIGTERM to SIGKILL, in which a checkpoint is saved (default %(default)g)",
        )
        command.add_argument(
            "--exit-with-parent", action="store_true", help="end when the process that started this one is gone"
        )
    # A training tokenises all rows in any case.
    parser.set_defaults(all=False)
    commands.choices["check"].add_argument(
        "--all", action="store_true", help="look at lengths and mask of all rows, not of 2,000 drawn evenly"
    )
    work, launch = commands.add_parser("work"), commands.add_parser("launch")
    work.add_argument("--only", choices=("check", "prepare", "train"))
    work.add_argument("--all", action="store_true")
    for command in (work, launch):
        command.add_argument("--work-dir", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
