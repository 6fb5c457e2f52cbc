"""The runner as one file: ``finetune-runner.pyz``, which any Python >= 3.10 starts without Airflow and without us."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

_PACKAGE = Path(__file__).parent

FILE_NAME = "finetune-runner.pyz"

_MAIN = """\
import sys

from airflow_provider_finetune.runner.__main__ import main

sys.exit(main())
"""


def runner_bytes() -> bytes:
    """Return the runner that belongs to this installation.

    :return: the file that came with the wheel, so that every worker ships the same bytes whatever its zlib; in an
        editable install, which has none, the runner built from the source as it is now.
    """
    shipped = _PACKAGE / FILE_NAME
    return shipped.read_bytes() if shipped.is_file() else build_runner()


def build_runner() -> bytes:
    """Pack ``contract/`` and ``runner/`` into a zipapp.

    :return: the archive. The same source gives the same bytes: names are sorted, time and mode are fixed.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        _add(packed, "__main__.py", _MAIN.encode())
        for path in [_PACKAGE / "__init__.py", *_sources("contract"), *_sources("runner")]:
            _add(packed, path.relative_to(_PACKAGE.parent).as_posix(), path.read_bytes())
    return archive.getvalue()


def _sources(folder: str) -> list[Path]:
    return sorted(path for path in (_PACKAGE / folder).rglob("*.py") if path.is_file())


def _add(packed: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980-01-01, the oldest a zip can say
    entry.create_system = 3  # Unix, also where the build machine is not: the mode below is then read
    entry.external_attr = 0o100644 << 16
    packed.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    sys.stdout.buffer.write(runner_bytes())
