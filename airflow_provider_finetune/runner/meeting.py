"""How several nodes begin together.

Node 0 checks and prepares while the others wait for it; then all start their processes. Until then node 0 listens where
the training's own rendezvous will be (``PET_MASTER_ADDR``, ``PET_MASTER_PORT``), and each other node keeps one
connection to it, one JSON object a line:

* node 0: ``{"lineage": "3", "token": "…", "spec": "<hash>"}``. A file of the token's name lies in the lineage.
* node n: ``{"node": n, "sees": true}``, or false where the file has not come in sight: their disk is not the same.
* node 0: ``{"go": true}``, or ``{"failure": {…}}``; a connection that ends without either is a node 0 that has died.

So nobody waits for a node that is gone, nobody takes what an earlier try has left for this one's, and a node that
starts an hour later is waited for.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.outcome import PEER_FAILED, Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.nodes import Placement, misplaced
from airflow_provider_finetune.runner.stopping import Stop
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_POLL_SECONDS = 0.5
_SHARED_SECONDS = 90.0
"""How long a node looks for node 0's file: NFS clients keep an old listing for 60 s."""
_ANSWER_SECONDS = _SHARED_SECONDS + 30
_LINGER_SECONDS = 10.0
"""How long node 0, having failed, stays to tell the nodes that have not come yet. A cluster ends later ones."""


class Meeting:
    """Node 0's side. With one node there is nobody to wait for, and nothing is opened.

    :param here: this node's place.
    :param spec: what is trained.
    :param work_dir: the lineage that the others are to find.
    """

    def __init__(self, here: Placement, spec: TrainingSpec, work_dir: WorkDir) -> None:
        self._here, self._work_dir = here, work_dir
        self._token = uuid.uuid4().hex
        self._greeting = {"lineage": work_dir.path.name, "token": self._token, "spec": spec.whole_hash()}
        self._missing = set(range(1, here.nodes))
        self._blind: int | None = None
        self._guests: list[socket.socket] = []
        self._door: socket.socket | None = None

    def open(self) -> None:
        """Let the others come from now on.

        :raises RunFailed: the port is taken.
        """
        if self._here.master is None:
            return
        self._work_dir.nodes.mkdir()
        (self._work_dir.nodes / self._token).touch()
        both = socket.has_dualstack_ipv6()
        try:
            self._door = socket.create_server(
                ("", self._here.master[1]), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
            )
        except OSError as error:
            raise RunFailed(
                "infrastructure",
                "port_taken",
                f"Port {self._here.master[1]} of node 0, where the others look for it, cannot be opened: {error}",
                "Something else listens there: a pod with hostNetwork shares its ports with its node",
            ) from error
        _in_background(self._welcome, self._door)

    def wait_for_all(self, stop: Stop, say: Callable[[str], None]) -> None:
        """Return when every node is there, however long that takes.

        :param stop: ends the waiting.
        :param say: takes a line each time that the nodes waited for have changed.
        :raises RunFailed: a node has another disk, or the run is stopped.
        """
        said: set[int] = set()
        while self._missing and self._blind is None:
            if stop.number is not None:
                raise _stopped(stop)
            if said != self._missing:
                said = set(self._missing)
                say(f"ready; waiting for node {', '.join(map(str, sorted(said)))}")
            time.sleep(_POLL_SECONDS)
        if self._blind is not None:
            raise _not_shared(self._blind, self._work_dir.path)

    def start(self) -> None:
        """Let all nodes begin, and free the port for the training's rendezvous."""
        self._close({"go": True})

    def dismiss(self, failure: Failure | None, stop: Stop) -> None:
        """Tell the others why there will be no training; where it has begun there is nobody left to tell.

        :param failure: node 0's own.
        :param stop: ends the waiting for nodes that have not come yet.
        """
        until = time.monotonic() + _LINGER_SECONDS
        while self._door and self._missing and self._blind is None and stop.number is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        if failure is not None:
            self._close({"failure": asdict(failure)})

    def _welcome(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                guest, _ = door.accept()
                _in_background(self._talk, guest)

    def _talk(self, guest: socket.socket) -> None:
        """Greet a node and note its answer; whoever else has come by is sent away."""
        try:
            _send(guest, self._greeting)
            answer = _receive(guest, time.monotonic() + _ANSWER_SECONDS)
            node, sees = int(answer["node"]), bool(answer["sees"])
        except (OSError, KeyError, TypeError, ValueError):
            guest.close()
            return
        self._guests.append(guest)
        if not sees:
            self._blind = node
        self._missing.discard(node)

    def _close(self, verdict: Mapping[str, Any]) -> None:
        if self._door is None:
            return
        # A thread that waits in accept() would keep a socket that is only closed.
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._door = None
        for guest in self._guests:
            with suppress(OSError), guest:
                _send(guest, verdict)


def join(here: Placement, spec: TrainingSpec, stop: Stop, say: Callable[[str], None]) -> WorkDir:
    """Wait on another node until node 0 has prepared everything, and return the lineage.

    :param here: this node's place.
    :param spec: what is trained.
    :param stop: ends the waiting.
    :param say: takes a line for the log.
    :raises RunFailed: node 0 has failed or is gone, its disk is not ours, or the run is stopped.
    """
    assert here.master is not None
    say(f"node {here.node} of {here.nodes}; waiting for node 0 at {here.master[0]}:{here.master[1]}")
    while True:
        _ensure_going(stop)
        with suppress(OSError), socket.create_connection(here.master, timeout=10) as node_0:
            node_0.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            lineage, token, wanted = _greeting(node_0, stop)
            if wanted != spec.whole_hash():
                raise misplaced("node 0 trains something else")
            return _attend(node_0, here, WorkDir(Path(spec.work_dir).absolute() / lineage), token, stop)
        # Not there yet, not known to the name server yet, or the rendezvous of a training that has begun without us.
        time.sleep(_POLL_SECONDS)


def _greeting(node_0: socket.socket, stop: Stop) -> tuple[str, str, str]:
    greeting = _receive(node_0, time.monotonic() + 10, stop)
    try:
        return str(greeting["lineage"]), str(greeting["token"]), str(greeting["spec"])
    except KeyError as error:
        raise ConnectionError("somebody else listens there") from error


def _attend(node_0: socket.socket, here: Placement, work_dir: WorkDir, token: str, stop: Stop) -> WorkDir:
    sees = _comes_in_sight(work_dir.nodes / token, stop)
    _send(node_0, {"node": here.node, "sees": sees})
    if not sees:
        raise _not_shared(here.node, work_dir.path)
    try:
        verdict = _receive(node_0, None, stop)
    except OSError:
        _ensure_going(stop)
        verdict = {}
    if verdict.get("go"):
        return work_dir
    told = verdict.get("failure") or {"failure_class": "infrastructure", "message": "it is gone without a word"}
    raise RunFailed(
        told["failure_class"],
        PEER_FAILED,
        f"Node 0 has ended before the training began: {told['message']}",
        told.get("cure") or "Its own log has the reason",
    )


def _comes_in_sight(file: Path, stop: Stop) -> bool:
    """Look by listing the directory: a network disk remembers for a while that a file was not there."""
    until = time.monotonic() + _SHARED_SECONDS
    while time.monotonic() < until:
        with suppress(OSError):
            if file.name in os.listdir(file.parent):
                return True
        _ensure_going(stop)
        time.sleep(_POLL_SECONDS)
    return False


def _not_shared(node: int, lineage: Path) -> UserError:
    return UserError(
        "work_dir_not_shared",
        f"Node {node} does not see what node 0 has written to {lineage}: each has a disk of its own there",
        "Training on several nodes needs a volume that all of them mount: a claim with access mode ReadWriteMany",
    )


def _ensure_going(stop: Stop) -> None:
    if stop.number is not None:
        raise _stopped(stop)


def _stopped(stop: Stop) -> RunFailed:
    failure = stop.failure("while it waited for the other nodes")
    return RunFailed(failure.failure_class, failure.cause, failure.message, failure.cure)


def _send(peer: socket.socket, content: Mapping[str, Any]) -> None:
    peer.sendall(json.dumps(content).encode() + b"\n")


def _receive(peer: socket.socket, until: float | None, stop: Stop | None = None) -> dict[str, Any]:
    """Return the next object that a peer sends.

    :param peer: sends nothing more before it is answered.
    :param until: when to give up, on the monotonic clock; ``None`` is never.
    :param stop: ends the waiting.
    :raises OSError: it is gone or silent, has sent something else, or we are stopped.
    """
    received = b""
    peer.settimeout(_POLL_SECONDS)
    while not received.endswith(b"\n"):
        if (until is not None and time.monotonic() > until) or (stop is not None and stop.number is not None):
            raise TimeoutError
        try:
            chunk = peer.recv(65536)
        except TimeoutError:
            continue
        if not chunk:
            raise ConnectionResetError
        received += chunk
    try:
        return dict(json.loads(received))
    except (TypeError, ValueError) as error:
        raise ConnectionError("that is none of ours") from error


def _in_background(target: Callable[[socket.socket], None], argument: socket.socket) -> None:
    threading.Thread(target=target, args=(argument,), daemon=True).start()
