"""How far a study is that runs while its page is written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Running:
    """What the page of a running study says about it.

    Attributes:
        now: what is finished, such as ``12 of 30 runs finished``.
        share: finished share, in [0, 1].
        left: the time left, such as ``about 3 min left``; empty if unknown.
        written: the time of writing.
    """

    now: str
    share: float
    left: str
    written: str
