"""What the check hands to the training, in this process or as a file to others."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_finetune.runner.model import BaseModel
from airflow_provider_finetune.runner.turns import ChatTemplate


@dataclass(frozen=True)
class Prepared:
    """What the check hands to the training.

    * ``base``: what is trained, and what the result is held against
    * ``chat_template``: the one that rows were rendered with; ``None`` where the tokenizer has none
    * ``keywords``: training-hub's
    * ``device``: ``cuda`` or ``cpu``
    * ``data``: fingerprint of the data set
    """

    base: BaseModel
    chat_template: ChatTemplate
    keywords: dict[str, Any]
    device: str
    data: str

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint of this training is of."""
        base = self.base.revision or [self.base.reference, self.base.weight_bytes]
        return {"dataset": self.data, "base_model": base, "device": self.device}

    def to_json(self) -> str:
        """Return a document for processes that begin where the check has ended."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Prepared:
        """Read what :meth:`to_json` has written."""
        document = json.loads(text)
        return cls(**{**document, "base": BaseModel(**document["base"])})
