"""Models of all tasks: those that come with csstdask, in the folder ``models`` of each room, and a user's own."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard, read_card

#: What ``model="default"`` means for each task.
DEFAULTS = {"cosmicray": "unet", "inpaint": "median", "psf": "principal", "sed": "sed", "zeropoint": "zeropoint"}
#: The PSF model that learns from the stars at hand: its name, and the kind of cards like its own.
EMPIRICAL = "empirical"
#: What asks for no model at all, where a task can do without one.
NO_MODEL = "none"
#: What asks for no PSF at all: stars are then repaired as everything else.
NO_PSF = NO_MODEL


@functools.cache
def all_cards() -> tuple[ModelCard, ...]:
    """Return the cards of everything that comes with csstdask, by task and name."""
    with resources.as_file(resources.files("csstdask")) as rooms:
        cards = [read_card(path) for path in rooms.glob("*/models/*.json")]
    return tuple(sorted(cards, key=lambda card: (card.task, card.name)))


def find_card(task: str, model: str) -> ModelCard:
    """Return the card of a model for a task.

    Parameters
    ----------
    task : str
        ``cosmicray``, ``inpaint``, ``psf``, ``sed`` or ``zeropoint``.
    model : str
        ``default``, a name, or the path of a card (``.json``) with its weights beside it.

    Raises
    ------
    ValueError
        Naming the models there are.
    InputError
        If a path leads to no card, or to one for another task.
    """
    if model.endswith(".json"):
        card = read_card(Path(model))
        if card.task != task:
            raise InputError(model, f"a card for {card.task}", f"one for {task}")
        return card
    name = DEFAULTS[task] if model == "default" else model
    known = {card.name: card for card in all_cards() if card.task == task}
    if name not in known:
        raise ValueError(
            f"model: found {model!r}; wanted default, one of {', '.join(sorted(known))}, or a card's path (.json)"
        )
    return known[name]
