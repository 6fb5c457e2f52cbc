"""``Outcome``: what came of a training, as the one versioned JSON document that travels back from the runner.

The full form is a file beside the model. The small form fits the 4,096 bytes that a kubelet keeps of a container's
termination message; what does not fit is left out in the order of importance: curve, data set, versions first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

VERSION = 1
SMALL_FORM_BYTES = 4096

FailureClass = Literal["user", "resources", "infrastructure", "preempted"]
"""Who must act: the DAG author; more memory or disk; nobody, another try may do; nobody, a retry resumes."""


class UnreadableOutcome(ValueError):
    """The document is not an outcome."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no model.

    * ``failure_class``: see :data:`FailureClass`; only ``user`` makes a retry pointless
    * ``cause``: a short stable name such as ``dataset_missing``
    * ``message``: what happened to which object; ``cure``: what to do
    * ``log_tail``: last lines of the training log
    """

    failure_class: FailureClass
    cause: str
    message: str
    cure: str = ""
    log_tail: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one attempt.

    * ``status``: ``succeeded``, ``checked`` (only the check ran) or ``failed``
    * ``model_uri``, ``model_path``: the published model; ``model_kind``: ``adapter`` or ``full``
    * ``metrics``: last and best values, tokens, steps, seconds, peak memory in bytes
    * ``loss_curve``: at most 100 ``[step, loss]``
    * ``loss_chart``: URI of the HTML page
    * ``dataset``: fingerprint, rows used, dropped and cut, share of tokens trained
    * ``work_dir``: the directory of this attempt
    """

    status: Literal["succeeded", "checked", "failed"]
    model_uri: str | None = None
    model_path: str | None = None
    model_kind: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    loss_chart: str | None = None
    work_dir: str | None = None
    spec_hash: str | None = None
    dataset: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    loss_curve: list[list[float]] = field(default_factory=list)
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
            failure = known.get("failure")
            if isinstance(failure, Mapping):
                names = {item.name for item in fields(Failure)}
                known["failure"] = Failure(**{key: value for key, value in failure.items() if key in names})
            return cls(**known)
        except (ValueError, TypeError, KeyError) as error:
            raise UnreadableOutcome(f"This is not an outcome of the runner: {error}") from error

    def to_small_json(self) -> str:
        """Return the form for a termination message: at most :data:`SMALL_FORM_BYTES` bytes of UTF-8."""
        document = {key: value for key, value in asdict(self).items() if value not in (None, {}, [])}
        curve: list[list[float]] = document.get("loss_curve", [])
        log_tail: list[str] = document.get("failure", {}).get("log_tail", [])
        while _size(document) > SMALL_FORM_BYTES:
            if len(curve) > 2:
                curve[:] = [curve[0], *curve[2:-1:2], curve[-1]] if len(curve) > 4 else []
            elif log_tail:
                log_tail.pop(0)
            else:
                self._drop_least_important(document)
        return json.dumps(document, allow_nan=False, separators=(",", ":"))

    @staticmethod
    def _drop_least_important(document: dict[str, Any]) -> None:
        for name in ("loss_curve", "dataset", "versions", "metrics"):
            if document.pop(name, None) is not None:
                return
        failure = document["failure"]
        longest = max(("message", "cure"), key=lambda name: len(failure.get(name, "")))
        failure[longest] = failure[longest][: len(failure[longest]) // 2] + "…"


def _size(document: dict[str, Any]) -> int:
    return len(json.dumps(document, allow_nan=False, separators=(",", ":")).encode())
