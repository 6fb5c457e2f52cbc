"""Models in OCI images (ModelCar: a model below ``/models``), fetched by skopeo, which needs no container engine."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from airflow_provider_finetune.runner import transfer
from airflow_provider_finetune.runner.failures import RunFailed, UserError, is_disk_full

_MODELS = "models"
_REMOVED = ".wh."
"""What a layer removes of those below it stands there as a file of this beginning."""
_ALL_REMOVED = ".wh..wh..opq"


def fetch_model(uri: str, argument: str, scratch: Path, say: Callable[[str], None]) -> Path:
    """Fetch an image and unpack its model.

    Even the config lies in a layer, so the whole image is fetched before anything of the model can be checked.
    Credentials are those of ``skopeo login``, at the place that ``REGISTRY_AUTH_FILE`` names.

    :param uri: ``oci://registry/repository:tag`` or ``…@sha256:…``.
    :param argument: the operator's argument, for messages.
    :param scratch: has room for the image and the model together.
    :param say: takes one line for people.
    :return: the directory with the model's config, below ``scratch``.
    :raises UserError: no skopeo, no such image, no right to it, or no model in it.
    :raises RunFailed: the registry cannot be reached.
    """
    if "@" in _reference(uri).partition("/")[0]:
        raise UserError(
            "model_name_wrong",
            f"{argument}: a user or a password stands in the address of an OCI image",
            "Leave it out: credentials are those of skopeo login, in the file that REGISTRY_AUTH_FILE names",
        )
    if not shutil.which("skopeo"):
        raise UserError(
            "skopeo_missing",
            f"{argument}={uri!r}: an OCI image is fetched by skopeo, which is not on the training's PATH",
            "Install the package skopeo where the training runs, or copy the model to a directory or an object store",
        )
    image, model = scratch / "image", scratch / "base-model"
    for directory in (image, model):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    try:
        with transfer.said(say, f"image {uri}", image):
            _copy(uri, argument, image)
        for layer in _layers(image):
            _unpack(layer, model, uri, argument)
            layer.unlink()
    finally:
        shutil.rmtree(image, ignore_errors=True)
    return _model_in(model / _MODELS, uri, argument)


def _copy(uri: str, argument: str, image: Path) -> None:
    # Decompressed, as Python knows no zstd before 3.14.
    command = ["skopeo", "copy", "--quiet", "--dest-decompress", f"docker://{_reference(uri)}", f"dir:{image}"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        raise _failure(uri, argument, ended.stderr)


def _reference(uri: str) -> str:
    return uri.partition("://")[2]


def _failure(uri: str, argument: str, log: str) -> Exception:
    """Say what skopeo's last line means; it has one exit status for everything."""
    last = (log.strip().splitlines() or ["it gives no reason"])[-1]
    # A storage behind the registry gets its rights in the query of a URL.
    reason = re.sub(r"\?[^\s\"]*", "", re.sub(r'^time=.* msg="(.*)"$', r"\1", last).replace('\\"', '"'))
    if "no space left" in reason:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = f"{argument}: skopeo cannot fetch {uri}: {reason}"
    if re.search("unknown|not found|invalid reference|Invalid source", reason):
        return UserError("model_missing", message, "Check registry, repository and tag")
    if re.search("unauthorized|denied|authentication|40[13]", reason):
        cure = "Give the training an auth.json with the right to read it (skopeo login), named by REGISTRY_AUTH_FILE"
        return UserError("model_unreadable", message, cure)
    cure = "Check the network of the training and that the registry answers; a private authority's certificate "
    cure += "can be named by SSL_CERT_FILE"
    return RunFailed("infrastructure", "registry_unreachable", message, cure, parameter=argument)


def _layers(image: Path) -> Iterator[Path]:
    manifest = json.loads((image / "manifest.json").read_text(encoding="utf-8"))
    for layer in manifest["layers"]:
        yield image / layer["digest"].partition(":")[2]


def _unpack(layer: Path, target: Path, uri: str, argument: str) -> None:
    """Lay what a layer holds below ``/models`` over what those before it have left in ``target``."""
    try:
        with tarfile.open(layer) as packed:
            members = [(_place(member), member) for member in packed]
            members = [(place, member) for place, member in members if place.parts[:1] == (_MODELS,)]
            for place, _ in members:
                if place.name.startswith(_REMOVED):
                    _remove(target / place.parent, place.name)
            for place, member in members:
                if not place.name.startswith(_REMOVED):
                    packed.extract(member, target, filter="data")
    except (tarfile.TarError, OSError) as error:
        if is_disk_full(error):
            raise
        raise UserError(
            "model_unreadable",
            f"{argument}: a layer of {uri} cannot be unpacked: {error}",
            "Build the image with plain files and directories below /models",
        ) from error


def _place(member: tarfile.TarInfo) -> PurePosixPath:
    place = PurePosixPath(member.name.lstrip("/"))
    if ".." in place.parts:
        raise tarfile.TarError(f"{member.name!r} leads out of it")
    return place


def _remove(directory: Path, mark: str) -> None:
    if mark == _ALL_REMOVED:
        places = list(directory.iterdir()) if directory.is_dir() else []
    else:
        places = [directory / mark.removeprefix(_REMOVED)]
    for place in places:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def _model_in(models: Path, uri: str, argument: str) -> Path:
    found = [config.parent for config in (models / "config.json", *sorted(models.glob("*/config.json")))]
    there = [directory for directory in found if (directory / "config.json").is_file()]
    if len(there) == 1 or models in there:
        return there[0]
    which = ", ".join(f"/{directory.relative_to(models.parent)}" for directory in there)
    raise UserError(
        "model_incomplete",
        f"{argument}: {uri} holds {f'several models: {which}' if there else 'no model: no config.json below /models'}",
        "Name an image with one model, its files in /models or in one directory below it",
    )
