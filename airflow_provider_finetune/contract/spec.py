"""``TrainingSpec``: what to train, as the one versioned JSON document that travels from the operator to the runner."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

from airflow_provider_finetune.contract import uris
from airflow_provider_finetune.contract.parameters import FineTuneParameters, LoRAParameters, TrainingParameters

VERSION = 1
"""Grows only when a reader of the older form would do something wrong; new optional fields do not change it."""

SCRATCH_DIRECTORY = "/var/lib/finetune"
"""Root of the files of a training in a pod of which nothing but its remote results outlives the pod."""

RECORDS: dict[str, type[TrainingParameters]] = {
    "osft": FineTuneParameters,
    "sft": FineTuneParameters,
    "lora_sft": LoRAParameters,
}
"""The record of each training-hub algorithm's parameters."""


_DECIDE_THE_WEIGHTS = frozenset({"algorithm", "base_model", "dataset", "parameters", "extra_args"})
_IN_NO_HASH = frozenset({"mounts", "recover"})
"""Other names of places that the hash has already; a second look at what the same request has left."""
_PLACES = ("base_model", "dataset", "output_model", "output_metrics", "output_loss_chart")


class UnreadableSpec(ValueError):
    """The document is not a spec that this runner can follow."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """What one task instance trains. It never holds a secret, but for the signature of a signed link.

    * ``algorithm``: ``osft``, ``sft`` or ``lora_sft``
    * ``base_model``, ``dataset``: path, URI or HuggingFace id
    * ``parameters``: documented names without ``training_``, in their declared types
    * ``extra_args``: further training-hub keywords
    * ``work_dir``: directory of this task instance; each lineage gets a numbered directory below it
    * ``output_model``, ``output_metrics``, ``output_loss_chart``: where to publish; ``None`` is the work directory
    * ``output_kind``: what of a LoRA training is published: ``adapter``, ``merged`` (the base model with the adapter
      merged into it) or ``both``, each in a directory of its name below ``output_model``
    * ``processes_per_node``: a number, or ``auto`` for one each GPU; ``nodes``: number of workers
    * ``device``: ``cuda``, ``cpu``, or ``auto`` for CUDA where there is one
    * ``resume``: ``auto``, ``never``, ``require``; ``keep``: ``model``, ``checkpoints``, ``all``
    * ``max_dropped``: share of rows (0 to 1) that may be dropped; ``show_samples``: samples to print
    * ``progress_interval``: seconds between two progress lines
    * ``mounts``: URI of a volume, or of a directory in it, to the path where the runner sees it
      (``{"pvc://claim": "/mnt/claim"}``): results below such a path are reported by that URI
    * ``recover``: report the model of the work directory's last attempt where it is one of this very request, and
      train only where there is none
    """

    algorithm: str
    base_model: str
    dataset: str
    work_dir: str
    parameters: dict[str, Any] = field(default_factory=dict)
    extra_args: dict[str, Any] = field(default_factory=dict)
    output_model: str | None = None
    output_metrics: str | None = None
    output_loss_chart: str | None = None
    output_kind: str = "adapter"
    processes_per_node: int | str = "auto"
    nodes: int = 1
    device: str = "auto"
    resume: str = "auto"
    keep: str = "model"
    max_dropped: float = 0.05
    show_samples: int = 0
    progress_interval: float = 30.0
    mounts: dict[str, str] = field(default_factory=dict)
    recover: bool = False
    version: int = VERSION

    def to_json(self) -> str:
        """Return the document; equal specs give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrainingSpec:
        """Read a document.

        :param text: what :meth:`to_json` wrote, perhaps in another version of this package.
        :raises UnreadableSpec: not a JSON object, a newer version, or a field that this version would ignore.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise UnreadableSpec(f"The training spec is not JSON: {error}") from error
        if not isinstance(document, Mapping) or not isinstance(document.get("version"), int):
            raise UnreadableSpec("The training spec is not a JSON object with a version")
        unknown = sorted(set(document) - {known.name for known in fields(cls)})
        if document["version"] > VERSION or unknown:
            raise UnreadableSpec(
                f"The training spec (version {document['version']}, unknown fields {unknown}) is newer than this "
                f"runner, which reads version {VERSION}. Use a runner of the provider's own version"
            )
        try:
            return cls(**document)
        except TypeError as error:
            raise UnreadableSpec(f"The training spec lacks a field: {error}") from error

    def record(self) -> TrainingParameters:
        """Return ``parameters`` as the typed record of the algorithm."""
        return RECORDS[self.algorithm](**self.parameters)

    def training_hash(self) -> str:
        """Return a hash of what decides the trained weights: equal hashes may share checkpoints."""
        return self._hash(_DECIDE_THE_WEIGHTS)

    def shown(self) -> TrainingSpec:
        """Return the spec as everybody may read it: its places without what gives access to them."""
        places: dict[str, Any] = {name: uris.shown(place) for name in _PLACES if (place := getattr(self, name))}
        extra = {key: uris.shown(value) if isinstance(value, str) else value for key, value in self.extra_args.items()}
        return replace(self, **places, extra_args=extra)

    def whole_hash(self) -> str:
        """Return a hash of the whole request: equal hashes ask for the same, with or without ``recover``."""
        return self._hash({item.name for item in fields(self)} - _IN_NO_HASH)

    def _hash(self, names: Set[str]) -> str:
        """Hash what differs from its default, so that a field or parameter added later changes no hash."""
        document = _without_defaults(asdict(self), self)
        document["parameters"] = _without_defaults(self.parameters, RECORDS[self.algorithm])
        chosen = {name: document[name] for name in sorted(names & document.keys())}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def _without_defaults(values: Mapping[str, Any], record: Any) -> dict[str, Any]:
    defaults = {item.name: _default(item) for item in fields(record)}
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()
