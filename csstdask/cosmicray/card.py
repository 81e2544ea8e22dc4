"""Model cards: what a method is called, where it comes from, and the settings it was judged with.

A classical method has a card like a network has, and its parameters and threshold live in it, never apart.
The SHA-256 of a classical method is that of its card.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

#: What ``model="default"`` means for each task.
DEFAULTS = {"cosmicray": "lacosmic", "inpaint": "median"}


@dataclass(frozen=True)
class ModelCard:
    """One model or method.

    Attributes
    ----------
    name, task, version, licence, trained_on, sha256 : str
    threshold : float or None
        Probability from which a pixel counts as hit.
    parameters, metrics : dict
    """

    name: str
    task: str
    version: str
    method: str
    licence: str
    trained_on: str
    sha256: str
    threshold: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return what ``csstdask models`` tells of it."""
        keys = ("name", "task", "version", "sha256", "licence", "trained_on", "metrics")
        return {key: getattr(self, key) for key in keys}


@functools.cache
def all_cards() -> tuple[ModelCard, ...]:
    """Return the cards of everything that comes with csstdask, by task and name."""
    folder = resources.files("csstdask.cosmicray").joinpath("models")
    cards = []
    for item in folder.iterdir():
        if item.name.endswith(".json"):
            raw = item.read_bytes()
            cards.append(ModelCard(**json.loads(raw), sha256=hashlib.sha256(raw).hexdigest()))
    return tuple(sorted(cards, key=lambda card: (card.task, card.name)))


def find_card(task: str, model: str) -> ModelCard:
    """Return the card of a model for a task; ``default`` is the task's default.

    Raises
    ------
    ValueError
        Naming the models there are.
    """
    name = DEFAULTS[task] if model == "default" else model
    known = {card.name: card for card in all_cards() if card.task == task}
    if name not in known:
        raise ValueError(f"model: found {model!r}; wanted default or one of {', '.join(sorted(known))}")
    return known[name]
