"""Nodes of one training find each other, and none waits for one that cannot come.

* which node this is, and when what the controller says cannot be
* the others wait for node 0, early or late; strangers at the door are sent away
* node 0 has failed, is gone, has another disk, trains something else; somebody stops the waiting
* the node that has ended first is named by the others
"""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_finetune.contract.outcome import PEER_FAILED, Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import meeting, nodes
from airflow_provider_finetune.runner.failures import RunFailed, explain
from airflow_provider_finetune.runner.meeting import Meeting, join
from airflow_provider_finetune.runner.nodes import Placement, placement
from airflow_provider_finetune.runner.stopping import Stop
from airflow_provider_finetune.runner.tries import workdir
from airflow_provider_finetune.runner.tries.workdir import WorkDir

PET = {"PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29500"}
BROKEN = Failure(failure_class="user", cause="dataset_missing", message="There is no data", cure="Write some")


@pytest.fixture
def spec(tmp_path: Path) -> TrainingSpec:
    """A training on three nodes."""
    return TrainingSpec(
        algorithm="lora_sft", base_model="m", dataset="d", work_dir=str(tmp_path / "work"), nodes=3, device="cpu"
    )


@pytest.fixture
def master() -> tuple[str, int]:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return "127.0.0.1", free.getsockname()[1]


@pytest.fixture
def first(spec: TrainingSpec, master: tuple[str, int]) -> Meeting:
    """Node 0's side."""
    return Meeting(Placement(0, 3, 1, master), spec, workdir.create(Path(spec.work_dir)))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> ThreadPoolExecutor:
    """Other nodes."""
    monkeypatch.setattr(meeting, "_POLL_SECONDS", 0.02)
    return ThreadPoolExecutor(4)


def say(line: str) -> None:
    """Nobody listens."""


def others(pool: ThreadPoolExecutor, spec: TrainingSpec, master: tuple[str, int]) -> list[Future[WorkDir]]:
    """Let nodes 1 and 2 come."""
    return [pool.submit(join, Placement(node, 3, 1, master), spec, Stop(), say) for node in (1, 2)]


def failure_of(node: Future[WorkDir]) -> Failure:
    """Return why a node ends."""
    error = node.exception(timeout=20)
    assert isinstance(error, RunFailed)
    return error.failure


def test_a_node_knows_its_place_from_what_the_controller_sets(spec: TrainingSpec) -> None:
    here = placement(replace(spec, processes_per_node=4), PET)
    assert here == Placement(2, 3, 4, ("job-node-0-0.job", 29500))
    assert here.processes == 12


def test_one_node_needs_nothing_of_the_controller_and_heeds_nothing_of_it(spec: TrainingSpec) -> None:
    assert placement(replace(spec, nodes=1), {**PET, "PET_NNODES": "1"}) == Placement()


@pytest.mark.parametrize(
    "wrong", [{"PET_NNODES": "2"}, {"PET_NODE_RANK": "3"}, {"PET_MASTER_PORT": "x"}, {"PET_MASTER_ADDR": None}]
)
def test_nodes_that_do_not_belong_together_are_refused(spec: TrainingSpec, wrong: dict[str, str | None]) -> None:
    environment = {name: value for name, value in {**PET, **wrong}.items() if value is not None}
    with pytest.raises(RunFailed, match="several nodes") as raised:
        placement(spec, environment)
    assert raised.value.failure.cause == "nodes_not_set_up"


@pytest.mark.parametrize("processes", [0, -1, "many"])
def test_a_number_of_processes_that_is_none_is_refused(spec: TrainingSpec, processes: int | str) -> None:
    with pytest.raises(RunFailed, match="processes_per_node") as raised:
        placement(replace(spec, processes_per_node=processes), PET)
    assert raised.value.failure.cause == "processes_wrong"


def test_all_nodes_begin_once_node_0_is_ready_and_all_are_there(
    spec: TrainingSpec, master: tuple[str, int], first: Meeting, pool: ThreadPoolExecutor
) -> None:
    early = others(pool, spec, master)[0]
    time.sleep(0.1)
    first.open()
    lines: list[str] = []
    first.wait_for_all(Stop(), lines.append)
    assert not early.done(), "to be there is not yet to begin"
    first.start()
    assert early.result(timeout=20).path == Path(spec.work_dir) / "1"
    with socket.create_server(master):
        "the port is free for the training's own rendezvous"
    assert all("waiting for node" in line for line in lines)


def test_strangers_at_the_door_do_not_count_and_do_no_harm(
    spec: TrainingSpec, master: tuple[str, int], first: Meeting, pool: ThreadPoolExecutor
) -> None:
    first.open()
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"node": "x", "sees": 1}\n'):
        with socket.create_connection(master) as stranger:
            stranger.sendall(words)
    assert first._missing == {1, 2}
    nodes_there = others(pool, spec, master)
    first.wait_for_all(Stop(), say)
    first.start()
    assert {node.result(timeout=20).path.name for node in nodes_there} == {"1"}


def test_why_node_0_has_failed_ends_the_others_also_those_that_come_a_little_late(
    spec: TrainingSpec, master: tuple[str, int], first: Meeting, pool: ThreadPoolExecutor
) -> None:
    first.open()
    end = pool.submit(first.dismiss, BROKEN, Stop())
    time.sleep(0.2)
    for node in others(pool, spec, master):
        failure = failure_of(node)
        assert (failure.failure_class, failure.cause, failure.cure) == ("user", PEER_FAILED, "Write some")
        assert failure.message == "Node 0 has ended before the training began: There is no data"
    end.result(timeout=20)


def test_nobody_waits_for_a_node_0_that_has_died(
    spec: TrainingSpec, master: tuple[str, int], first: Meeting, pool: ThreadPoolExecutor
) -> None:
    first.open()
    nodes_there = others(pool, spec, master)
    first.wait_for_all(Stop(), say)
    for guest in first._guests:
        guest.close()
    assert {failure_of(node).cause for node in nodes_there} == {PEER_FAILED}
    assert "gone without a word" in failure_of(nodes_there[0]).message
    first.dismiss(BROKEN, Stop())


def test_a_disk_of_its_own_is_told_on_both_sides_with_the_cure(
    spec: TrainingSpec,
    master: tuple[str, int],
    first: Meeting,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting, "_SHARED_SECONDS", 0.3)
    first.open()
    # The same path on another disk, where an earlier training has left a lineage of the same number.
    monkeypatch.setattr(TrainingSpec, "whole_hash", lambda self: "same")
    first._greeting["spec"] = "same"
    (tmp_path / "other" / "1" / "nodes").mkdir(parents=True)
    elsewhere = others(pool, replace(spec, work_dir=str(tmp_path / "other")), master)
    with pytest.raises(RunFailed) as raised:
        first.wait_for_all(Stop(), say)
    for failure in (raised.value.failure, failure_of(elsewhere[0])):
        assert (failure.failure_class, failure.cause) == ("user", "work_dir_not_shared")
        assert "ReadWriteMany" in failure.cure
    first.dismiss(raised.value.failure, Stop())


def test_a_node_0_of_another_training_is_not_followed(
    spec: TrainingSpec, master: tuple[str, int], first: Meeting, pool: ThreadPoolExecutor
) -> None:
    first.open()
    stranger = others(pool, replace(spec, dataset="another"), master)[0]
    assert failure_of(stranger).cause == "nodes_not_set_up"
    first.start()


def test_whoever_waits_can_be_stopped(
    spec: TrainingSpec, master: tuple[str, int], first: Meeting, pool: ThreadPoolExecutor
) -> None:
    stop = Stop()
    lonely = pool.submit(join, Placement(1, 3, 1, master), spec, stop, say)
    first.open()
    waiting = pool.submit(first.wait_for_all, stop, say)
    threading.Timer(0.2, lambda: setattr(stop, "number", 15)).start()
    for node in (lonely, waiting):
        assert failure_of(node).cause == "terminated"  # type: ignore[arg-type]
    first.dismiss(BROKEN, stop)


def test_a_port_that_is_taken_is_named(master: tuple[str, int], first: Meeting) -> None:
    with socket.create_server(("", master[1])), pytest.raises(RunFailed, match=str(master[1])) as raised:
        first.open()
    assert raised.value.failure.cause == "port_taken"


def test_one_node_opens_nothing_and_waits_for_nobody(spec: TrainingSpec, tmp_path: Path) -> None:
    alone = Meeting(Placement(processes_per_node=2), spec, WorkDir(tmp_path))
    alone.open()
    alone.wait_for_all(Stop(), say)
    alone.start()
    alone.dismiss(BROKEN, Stop())
    assert not list(tmp_path.iterdir())


def test_a_connection_lost_in_the_training_is_a_consequence_and_names_who_was_first(tmp_path: Path) -> None:
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:5")
    lost = explain(gloo)
    assert lost.cause == PEER_FAILED
    assert explain(ConnectionResetError("the hub: Connection reset by peer")).cause != PEER_FAILED
    work_dir = WorkDir(tmp_path)
    assert nodes.culprit(work_dir, lost, seconds=0) == lost
    work_dir.nodes.mkdir()
    (work_dir.nodes / "9.json").write_text("{")
    nodes.tell(work_dir, 1, BROKEN)
    named = nodes.culprit(work_dir, lost)
    assert (named.failure_class, named.cause, named.cure) == ("user", PEER_FAILED, "Write some")
    assert named.message == "Node 1 has ended, and the training with it: There is no data"
