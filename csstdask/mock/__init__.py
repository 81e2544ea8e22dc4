"""Simulated sky, telescope and camera with known truth. Units are rendered in memory; nothing is written."""

from csstdask.mock.recipe import Recipe, load_recipe
from csstdask.mock.render import MockUnit, render_unit

__all__ = ["MockUnit", "Recipe", "load_recipe", "render_unit"]
