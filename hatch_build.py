"""Build hook: puts ``finetune-runner.pyz`` into the wheel.

Not into an editable install, where it would go stale with the next edit: there it is built from the source on use.
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RunnerHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        package = Path(self.root, "airflow_provider_finetune")
        self.folder = tempfile.TemporaryDirectory()
        archive = Path(self.folder.name, "finetune-runner.pyz")
        archive.write_bytes(runpy.run_path(str(package / "archive.py"))["build_runner"]())
        archive.chmod(0o644)
        build_data["force_include"][str(archive)] = f"{package.name}/{archive.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.folder.cleanup()
