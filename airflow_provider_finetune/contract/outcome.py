"""``Outcome``: what came of a training, as the one versioned JSON document that travels back from the runner.

The full form is a file beside the model. The small form fits the 4,096 bytes that a kubelet keeps of a container's
termination message. Status, model URI, metrics and failure matter most, in this order; what does not fit is left out
from the other end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

VERSION = 1
SMALL_FORM_BYTES = 4096

PROGRESS_MARK = "finetune-progress "
OUTCOME_MARK = "finetune-outcome "
"""What the machine-readable lines of the runner's output begin with; JSON follows on the same line."""

DATA_MARK = "| "
"""What the lines begin with that show text of the data, which belongs into the task log and into no outcome."""

Status = Literal["succeeded", "checked", "failed"]

FailureClass = Literal["user", "resources", "infrastructure", "preempted"]
"""Who must act, and whether a retry helps.

* ``user``: the DAG author; there is none
* ``resources``: whoever asks for memory, disk, time or a place: only with another request, or once there is room
* ``infrastructure``: nobody; another try may do
* ``preempted``: nobody; it goes on where this one ended
"""


PEER_FAILED = "peer_failed"
"""Cause of a failure that follows from another node's, which has the reason in its own outcome."""


class UnreadableOutcome(ValueError):
    """The document is not an outcome."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no model.

    * ``failure_class``: see :data:`FailureClass`
    * ``cause``: a short stable name such as ``dataset_missing``
    * ``message``: what happened to which object; ``cure``: what to do
    * ``parameter``: the operators' argument at fault, empty where it is none
    * ``log_tail``: last lines of the training log
    """

    failure_class: FailureClass
    cause: str
    message: str
    cure: str = ""
    log_tail: list[str] = field(default_factory=list)
    parameter: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one attempt.

    * ``status``: ``succeeded``, ``checked`` (only the check ran) or ``failed``
    * ``model_uri``, ``model_path``: the published model; no path where no file system of the training has it
    * ``model_kind``: ``adapter``, ``merged`` or ``full``
    * ``adapter_uri``: the adapter, where it was published beside the merged model
    * ``base_model``: ``name`` and, from a hub, ``revision`` of what was trained
    * ``metrics``: last and best values, tokens, steps, seconds, tokens a second, and in bytes the peak memory of the
      training process (``peak_memory_bytes``) and of the GPU that had most in use (``peak_gpu_memory_bytes``); the
      ``gpu_seconds`` of this node
    * ``loss_curve``: at most 100 ``[step, loss]``
    * ``loss_chart``: URI of the HTML page
    * ``plan``: steps, epochs, effective batch size, and the disk needed and free in bytes, as the check foresaw them
    * ``dataset``: the data report: fingerprint, rows used, dropped and cut, tokens, share of tokens trained
    * ``work_dir``: the directory of this attempt
    * ``checkpoint``: of a failed one, what a retry of the same training goes on from: ``unit`` (``step`` or ``epoch``),
      ``number`` and ``path``
    """

    status: Status
    model_uri: str | None = None
    model_path: str | None = None
    model_kind: str | None = None
    adapter_uri: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    loss_chart: str | None = None
    work_dir: str | None = None
    spec_hash: str | None = None
    base_model: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    loss_curve: list[list[float]] = field(default_factory=list)
    checkpoint: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """Return the full form. Non-finite numbers never reach it: JSON has none."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Read a full or small form; fields of a later version are passed over.

        :param text: the document.
        :raises UnreadableOutcome: it is cut short or is no outcome.
        """
        try:
            document = json.loads(text)
            known = {name: document[name] for name in (item.name for item in fields(cls)) if name in document}
            # Where a program left no message, a kubelet takes the end of its log, which may be any JSON.
            if known.get("status") not in get_args(Status):
                raise ValueError("its status is none of ours")
            failure = known.get("failure")
            if failure is not None:
                names = {item.name for item in fields(Failure)}
                known["failure"] = Failure(**{key: value for key, value in failure.items() if key in names})
            return cls(**known)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UnreadableOutcome(f"This is not an outcome of the runner: {error}") from error

    def to_small_json(self) -> str:
        """Return the form for a termination message: at most :data:`SMALL_FORM_BYTES` bytes of UTF-8."""
        document = {key: value for key, value in asdict(self).items() if value not in (None, {}, [])}
        while _size(document) > SMALL_FORM_BYTES:
            _take_from(document)
        return json.dumps(document, allow_nan=False, separators=(",", ":"))


_SHORTEST_TEXT = 200
"""Characters that are left at least of a failure's message and cure while there are metrics to leave out."""

_LAST_LINES = 5
"""Of the log, which are left while the data report has places of rows to leave out."""

_TELLS_THE_DATA = ("sha256", "identity", "rows")


def _take_from(document: dict[str, Any]) -> None:
    """Take away or shorten what matters least of what is there."""
    curve, failure = document.get("loss_curve", []), document.get("failure", {})
    if len(curve) > 4:
        curve[:] = [curve[0], *curve[2:-1:2], curve[-1]]
        return
    if detail := next(_details(document), None):
        container, key = detail
        del container[key]
        return
    texts = {name: len(failure.get(name, "")) for name in ("message", "cure", "cause")}
    longest = max(texts, key=lambda name: texts[name])
    leaving = next((name for name in _LEAVING if name in document), None)
    if leaving and texts[longest] <= _SHORTEST_TEXT:
        del document[leaving]
    else:
        failure[longest] = failure[longest][: texts[longest] // 2] + "…"


def _details(document: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield what is left out before the failure is shortened, each by what it stands in and its key there."""
    log, dataset = document.get("failure", {}).get("log_tail", []), document.get("dataset", {})
    yield from ((document, name) for name in ("loss_curve", "plan") if name in document)
    yield from ((log, 0) for _ in log[_LAST_LINES:])
    yield from ((dataset, name) for name in dataset if name.endswith("_lines"))
    yield from ((log, 0) for _ in log)
    if "versions" in document:
        yield document, "versions"
    yield from ((dataset, name) for name in dataset if name not in _TELLS_THE_DATA)
    yield from ((document, name) for name in ("dataset", "base_model") if name in document)


_LEAVING = ("metrics", "checkpoint", "work_dir", "loss_chart", "model_path", "adapter_uri", "model_uri")
"""What the small form may lack, in this order; the last ones only where a path alone is thousands of bytes long."""


def _size(document: dict[str, Any]) -> int:
    return len(json.dumps(document, allow_nan=False, separators=(",", ":")).encode())
