"""Images that are built as a user builds them, from ``images/Containerfile``, without a registry or an engine."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.cluster.bed import build
from tests.cluster.bed.processes import ClusterError

CONTAINERFILE = Path(__file__).parents[3] / "images" / "Containerfile"
SUITE = "bookworm"
BASE = f"localhost/python:{SUITE}"
"""The smallest Debian, with Python 3.11: a base without training-hub."""

LEFT_OUT = ("var/cache", "var/lib/apt", "usr/share/doc", "usr/share/locale", "usr/share/man")


class Images:
    """A store of images: of the base, and of what is built on it.

    :param folder: where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, context: Path, archive: Path, name: str) -> None:
        """Build the image of the repository on the base, and write it to an archive.

        :param context: a folder with ``finetune-runner.pyz``.
        """
        arguments = ("--isolation=chroot", "--pull-never", "--no-cache", "--squash")
        given = (f"--build-arg=BASE={BASE}", "--build-arg=TRAINING_HUB=")
        self.buildah("bud", *arguments, *given, f"--file={CONTAINERFILE}", f"--tag={name}", str(context))
        self.buildah("push", name, f"oci-archive:{archive}:{name}")
        self.buildah("rmi", name)

    def buildah(self, *arguments: str) -> str:
        """Run buildah on this store.

        :raises ClusterError: if it fails; with what it said last.
        """
        # Copies instead of overlays, which cannot be stacked on the overlay of a container.
        store = (f"--root={self.folder}/store", f"--runroot={self.folder}/run", "--storage-driver=vfs")
        return _run("buildah", *store, *arguments)


def images(say: build.Say) -> Images:
    """Give the store with the base, made now if it is not there.

    :raises ClusterError: if the base cannot be made.
    """
    store = Images(build.cache() / f"images-{SUITE}")
    with build.locked("images"):
        if not store.folder.exists():
            say(f"making a base image of Debian {SUITE}, once")
            unfinished = Images(build.cache() / "unfinished-images")
            shutil.rmtree(unfinished.folder, ignore_errors=True)
            _make_base(unfinished)
            unfinished.folder.rename(store.folder)
    return store


def _make_base(store: Images) -> None:
    root, layer = store.folder / "root", store.folder / "root.tar"
    root.mkdir(parents=True)
    _run("debootstrap", "--variant=minbase", "--include=python3", SUITE, str(root))
    with tarfile.open(layer, "w") as archive:
        archive.add(root, "/", filter=lambda entry: None if entry.name.startswith(LEFT_OUT) else entry)
    container = store.buildah("from", "scratch").strip()
    store.buildah("add", container, str(layer), "/")
    store.buildah("commit", "--rm", container, BASE)
    shutil.rmtree(root)
    layer.unlink()


def _run(*command: str) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed:\n{(answer.stdout + answer.stderr)[-3000:]}")
    return answer.stdout
