"""Where files lie in the pods of a training: ``pvc://claim/path`` as a path below a mount, and the mounts for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from airflow_provider_finetune.contract.spec import SCRATCH_DIRECTORY
from airflow_provider_finetune.launchers.identity import digest
from airflow_provider_finetune.launchers.refusal import CannotRender

OURS = "finetune-"
"""Prefix of the names of our volumes. One of the runtime's with the same name would be merged with ours."""

RUNNER_DIRECTORY = "/opt/finetune"

OWN_VOLUMES = ("runner", "shm", "scratch")
"""What our volumes are called behind :data:`OURS`, beside those of claims."""

_SCHEME = "pvc://"
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LONGEST_VOLUME_NAME = 63
_GONE_WITH_THE_POD = {"name", "emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected", "image"}
"""Keys of a volume that keep nothing once its pod is gone; a volume with no other is an ``emptyDir``."""


class ClaimPath(NamedTuple):
    """What ``pvc://claim/path`` says; ``path`` is empty for the whole claim."""

    claim: str
    path: str


@dataclass(frozen=True)
class Mount:
    """One volume mount that we can see.

    * ``path``: where it is in the pod; ``volume``: name of the volume
    * ``claim``: ``None`` for another kind of volume; ``sub_path``: the part of the claim that is mounted
    * ``durable``: what is written there outlives the pod
    """

    path: str
    volume: str
    claim: str | None = None
    sub_path: str = ""
    read_only: bool = False
    durable: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return the ``volumeMounts`` entry."""
        entry: dict[str, Any] = {"name": self.volume, "mountPath": self.path}
        return {**entry, "readOnly": True} if self.read_only else entry


def is_on_claim(place: str) -> bool:
    """Return whether a place is a ``pvc://`` URI.

    :param place: what a DAG author gave.
    """
    return place.startswith(_SCHEME)


def claim_path(uri: str) -> ClaimPath:
    """Read a ``pvc://`` URI; its path is percent-encoded where it must be, as that of a training's results is.

    :param uri: what a DAG author gave.
    :raises CannotRender: it names no claim, or leaves it by ``..``.
    """
    claim, _, encoded = uri.removeprefix(_SCHEME).partition("/")
    path = unquote(encoded)
    if not _CLAIM.fullmatch(claim):
        rule = f"{claim!r} is no name of a PersistentVolumeClaim" if claim else "it names no PersistentVolumeClaim"
        raise CannotRender(uri, rule, "Write pvc://<claim>/<path>")
    parts = PurePosixPath(path.lstrip("/")).parts
    if ".." in parts:
        raise CannotRender(uri, "it leaves the claim by '..'", "Write the path from the claim's root")
    return ClaimPath(claim, "/".join(parts))


def claim_volume(claim: str) -> dict[str, Any]:
    """Return the volume for a claim.

    :param claim: its name.
    """
    name = f"{OURS}{claim}"
    if len(name) > _LONGEST_VOLUME_NAME or "." in name or claim in OWN_VOLUMES:
        name = f"{name.replace('.', '-')[: _LONGEST_VOLUME_NAME - 9]}-{digest(claim)[:8]}"
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def claim_mount_path(claim: str) -> str:
    """Return where a claim is mounted unless ``kubernetes_config`` mounts it elsewhere.

    :param claim: its name.
    """
    return f"/mnt/{claim}"


class Places:
    """The places of one training, with the volumes and mounts that they need.

    A claim that ``kubernetes_config`` mounts already is used where it is; any other is mounted at ``/mnt/<claim>``,
    read-only where nothing is written to it.

    :param config: ``kubernetes_config`` as plain JSON.
    :param read: places that are read: any of them may be no ``pvc://`` URI.
    :param written: places that are written to.
    :param scratch: ``SCRATCH_DIRECTORY`` is needed, on the disk of the node unless ``kubernetes_config`` mounts
        something there.
    :raises CannotRender: a place cannot be reached.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        read: Iterable[str] = (),
        written: Iterable[str] = (),
        scratch: bool = False,
    ) -> None:
        self._volumes = {volume["name"]: volume for volume in config.get("volumes") or ()}
        self._given = [self._mount(entry) for entry in config.get("volume_mounts") or ()]
        self._own: dict[str, Mount] = {}
        self.volumes: list[dict[str, Any]] = []
        self._paths = {uri: self._resolve(uri, write=True) for uri in written}
        self._paths.update({uri: self._resolve(uri, write=False) for uri in read if uri not in self._paths})
        if scratch and all(mount.path != SCRATCH_DIRECTORY for mount in self._given):
            self._add_scratch()

    @property
    def volume_mounts(self) -> list[dict[str, Any]]:
        """The mounts beside those of ``kubernetes_config``."""
        return [mount.as_json() for mount in self._own.values()]

    @property
    def mounts(self) -> dict[str, str]:
        """Where each claim, or part of a claim, is mounted, by its ``pvc://`` URI."""
        found: dict[str, str] = {}
        for mount in (*self._given, *self._own.values()):
            if mount.claim:
                found.setdefault(f"{_SCHEME}{mount.claim}/{mount.sub_path}".rstrip("/"), mount.path)
        return found

    def path(self, place: str) -> str:
        """Return what the pod knows a place as: a path for ``pvc://`` and ``file://``, anything else as it is.

        :param place: one of those that were given.
        """
        return self._paths[place]

    def named(self, text: str) -> str:
        """Return ``text`` with the ``pvc://`` URIs of the paths in it, as the DAG author knows them.

        :param text: what a program in the pod says.
        """
        for uri, path in sorted(self.mounts.items(), key=lambda mount: len(mount[1]), reverse=True):
            in_text = rf"(?<![\w./-])(file://)?{re.escape(path)}(?![\w-]|\.\w)"
            text = re.sub(in_text, uri.replace("\\", r"\\"), text)
        return text

    def lasts(self, path: str) -> bool:
        """Return whether what is written to ``path`` is there when the pod is gone, as far as can be seen.

        :param path: absolute path in the pod.
        """
        around = [mount for mount in (*self._given, *self._own.values()) if _is_below(path, mount.path)]
        return bool(around) and max(around, key=lambda mount: len(mount.path)).durable

    def _mount(self, entry: Mapping[str, Any]) -> Mount:
        volume = self._volumes.get(entry["name"])
        claim = (volume or {}).get("persistentVolumeClaim") or {}
        return Mount(
            path=str(PurePosixPath(entry["mountPath"])),
            volume=entry["name"],
            # Which directory a subPathExpr means is known in the pod only.
            claim=None if entry.get("subPathExpr") else claim.get("claimName"),
            sub_path=(entry.get("subPath") or "").strip("/"),
            read_only=bool(entry.get("readOnly") or claim.get("readOnly")),
            # A volume that is not here is the runtime's, and is believed to last.
            durable=volume is None or bool(volume.keys() - _GONE_WITH_THE_POD),
        )

    def _resolve(self, place: str, *, write: bool) -> str:
        if not is_on_claim(place):
            return unquote(re.sub(r"^file://(localhost)?", "", place)) if place.startswith("file://") else place
        target = claim_path(place)
        mount = self._given_mount(place, target, write=write) or self._own_mount(place, target.claim, write=write)
        return str(PurePosixPath(mount.path, _from(target.path, mount.sub_path)))

    def _given_mount(self, place: str, target: ClaimPath, *, write: bool) -> Mount | None:
        fitting = [m for m in self._given if m.claim == target.claim and _is_below(target.path, m.sub_path)]
        usable = [mount for mount in fitting if not (write and mount.read_only)]
        if fitting and not usable:
            raise _read_only(place, fitting[0].path)
        return max(usable, key=lambda mount: len(mount.sub_path), default=None)

    def _own_mount(self, place: str, claim: str, *, write: bool) -> Mount:
        if claim not in self._own:
            path = claim_mount_path(claim)
            for other in (*self._given, *self._own.values()):
                if _is_below(path, other.path) or _is_below(other.path, path):
                    rule = f"the claim goes to {path}, and volume {other.volume!r} is mounted at {other.path}"
                    cure = "Mount that one elsewhere, or name a mount of the claim itself in kubernetes_config"
                    raise CannotRender(place, rule, cure)
            self._own[claim] = Mount(path, self._volume_of(place, claim, write=write), claim, read_only=not write)
        return self._own[claim]

    def _add_scratch(self) -> None:
        # The node's disk: in memory it would take what the training needs.
        self.volumes.append({"name": f"{OURS}scratch", "emptyDir": {}})
        self._own[""] = Mount(SCRATCH_DIRECTORY, f"{OURS}scratch", durable=False)

    def _volume_of(self, place: str, claim: str, *, write: bool) -> str:
        # Not a second volume of the same claim: the kubelet waits for ever for one of the two.
        for name, given in self._volumes.items():
            source = given.get("persistentVolumeClaim") or {}
            if source.get("claimName") == claim:
                if write and source.get("readOnly"):
                    raise _read_only(place, f"volume {name!r}")
                return str(name)
        volume = claim_volume(claim)
        self.volumes.append(volume)
        return str(volume["name"])


def _read_only(place: str, where: str) -> CannotRender:
    rule = f"it is written to, and kubernetes_config has its claim read-only ({where})"
    return CannotRender(place, rule, "Leave readOnly out there, or name another claim")


def _is_below(path: str, root: str) -> bool:
    return not root or PurePosixPath(path).is_relative_to(root)


def _from(path: str, root: str) -> str:
    return str(PurePosixPath(path).relative_to(root)) if root else path
