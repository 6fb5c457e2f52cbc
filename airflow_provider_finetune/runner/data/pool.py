"""Parts of a data set converted at once, in processes that end with this one."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_finetune.runner.data.files import BLOCK
from airflow_provider_finetune.runner.data.part import Part
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.log import die_with_parent

if TYPE_CHECKING:
    from concurrent.futures import Future

_T = TypeVar("_T")

_SMALL = 16 << 20
"""Bytes up to which processes are not worth their start."""

_MOST_WORKERS = 4

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's ``malloc.h``."""


def workers_for(size: int) -> int:
    """Return how many processes should share the work on so many bytes; 0 where this one does it alone.

    Only where processes fork: those that are started anew hash texts differently.

    :param size: bytes to read.
    """
    if size < _SMALL or not sys.platform.startswith("linux"):
        return 0
    cores = len(os.sched_getaffinity(0))
    return min(_MOST_WORKERS, cores) if cores > 1 else 0


def in_order(function: Callable[[_T], Part], items: Iterable[_T], workers: int, target: int) -> Iterator[Part]:
    """Yield ``function(item)`` for each of ``items``, in their order, its rows written to a file in the same order.

    Each process writes the rows that it has converted: to hand them over costs a fifth of the time. What is yielded
    has none any more.

    :param function: with nothing but its result; the items and what else it finds travel between the processes.
    :param items: are taken a few at a time.
    :param workers: how many processes.
    :param target: descriptor of an empty file.
    :yields: what has become of an item.
    :raises RunFailed: a process was killed.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    _reuse_memory()
    context = get_context("fork")
    most = 2 * workers + 1
    desk = _Desk(most)
    executor = ProcessPoolExecutor(workers, context, _begin, (os.getpid(), function, desk, _Turns(context, target)))
    pending: deque[Future[Part]] = deque()
    try:
        for turn, item in enumerate(items):
            pending.append(executor.submit(_convert_and_write, desk.put(turn, item), turn))
            if len(pending) == most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise RunFailed(
            "infrastructure",
            "killed",
            "A process that reads the data was killed",
            "Often the machine ran out of memory: give the training more, or start fewer at a time",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


class _Desk:
    """Memory on which items are handed over: through a pipe their buffers would be copied three times.

    Whoever puts an item waits first until the one that lay there is done with.

    :param places: how many items lie there at once.
    """

    _SIZE = 2 * BLOCK

    def __init__(self, places: int) -> None:
        self._places = places
        self._memory = memoryview(mmap.mmap(-1, places * self._SIZE))

    def put(self, turn: int, item: Any) -> tuple[bytes, list[int]]:
        """Return what :meth:`take` needs: the item without its buffers, and their sizes."""
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        sizes = [view.nbytes for view in views]
        if sum(sizes) > self._SIZE:
            return pickle.dumps(item, protocol=5), []
        for view, place in zip(views, self._each(turn, sizes), strict=True):
            place[:] = view
        return head, sizes

    def take(self, turn: int, head: bytes, sizes: list[int]) -> Any:
        return pickle.loads(head, buffers=self._each(turn, sizes))

    def _each(self, turn: int, sizes: list[int]) -> Iterator[memoryview]:
        begin = turn % self._places * self._SIZE
        for size in sizes:
            yield self._memory[begin : begin + size]
            begin += size


class _Turns:
    """Whose rows come next in the file.

    Items are begun in their order, so whoever waits waits for one that is being converted. They wait here and not for
    the file system, which would keep a processor busy meanwhile.
    """

    def __init__(self, context: Any, target: int) -> None:
        self._target = target
        self._changed = context.Condition()
        self._turn = context.RawValue("q", 0)

    def write(self, turn: int, rows: bytes | memoryview) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn.value == turn)
            try:
                rest = memoryview(rows)
                while rest:
                    rest = rest[os.write(self._target, rest) :]
            finally:
                self._turn.value += 1
                self._changed.notify_all()


_function: Callable[[Any], Part]
_desk: _Desk
_turns: _Turns
"""Of a process that converts."""


def _begin(parent: int, function: Callable[[Any], Part], desk: _Desk, turns: _Turns) -> None:
    global _function, _desk, _turns
    _function, _desk, _turns = function, desk, turns
    # The runner's handlers are not for its helpers.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    if arrow := sys.modules.get("pyarrow"):
        # Its own pool keeps 50 MB of what is freed in each process.
        arrow.set_memory_pool(arrow.system_memory_pool())


def _reuse_memory() -> None:
    """Let the C library keep what is freed for the next item: to get it anew is a tenth of the time."""
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(_M_MMAP_THRESHOLD, 8 * BLOCK)
        set_option(_M_TRIM_THRESHOLD, 8 * BLOCK)


def _convert_and_write(put: tuple[bytes, list[int]], turn: int) -> Part:
    rows: bytes | memoryview = b""
    try:
        part = _function(_desk.take(turn, *put))
        rows, part.canonical = part.canonical, b""
    finally:
        # Others wait for this turn, also where it has failed.
        _turns.write(turn, rows)
    return part
