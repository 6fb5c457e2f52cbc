"""The error of whatever asks for more than an object can say."""

from __future__ import annotations


class CannotRender(ValueError):
    """What was asked for cannot be written into an object; the DAG author must change it, and no retry helps.

    :param parameter: the operator's argument.
    :param rule: what it breaks.
    :param cure: what to do about it.
    """

    def __init__(self, parameter: str, rule: str, cure: str) -> None:
        super().__init__(f"{parameter}: {rule}. {cure}.")
        self.parameter = parameter
        self.rule = rule
        self.cure = cure
