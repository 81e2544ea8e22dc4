"""Search for models: those of csstdask, in the folder ``models`` of each package, and those of users."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard, read_card

#: Name of the default model of each task.
DEFAULTS = {"cosmicray": "unet", "inpaint": "median", "psf": "principal", "sed": "sed", "zeropoint": "zeropoint"}
#: Name and kind of the PSF model that is fitted to the stars of a frame.
EMPIRICAL = "empirical"
#: Name that selects no model, for tasks that do not need one.
NO_MODEL = "none"
#: Name that selects no PSF model: stars are repaired like all other pixels.
NO_PSF = NO_MODEL


@functools.cache
def all_cards() -> tuple[ModelCard, ...]:
    """Return the cards of all models of csstdask, sorted by task and name."""
    with resources.as_file(resources.files("csstdask")) as packages:
        cards = [read_card(path) for path in packages.glob("*/models/*.json")]
    return tuple(sorted(cards, key=lambda card: (card.task, card.name)))


def find_card(task: str, model: str) -> ModelCard:
    """Return the card of a model for a task.

    Parameters
    ----------
    task : str
        ``cosmicray``, ``inpaint``, ``psf``, ``sed`` or ``zeropoint``.
    model : str
        ``default``, a name, or the path of a card (``.json``) with its weights in the same folder.

    Raises
    ------
    ValueError
        If there is no such model; the message lists those of the task.
    InputError
        If a path is not a card, or the card is for another task.
    """
    if model.endswith(".json"):
        card = read_card(Path(model))
        if card.task != task:
            raise InputError(model, f"a card for {card.task}", f"one for {task}")
        return card
    name = DEFAULTS[task] if model == "default" else model
    cards_by_name = {card.name: card for card in all_cards() if card.task == task}
    if name not in cards_by_name:
        names = ", ".join(sorted(cards_by_name))
        raise ValueError(f"model: found {model!r}; wanted default, one of {names}, or a card's path (.json)")
    return cards_by_name[name]
