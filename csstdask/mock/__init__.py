"""A sky, a telescope and a camera with known truth: renders one unit, writes nothing."""

from csstdask.mock.recipe import Recipe, load_recipe
from csstdask.mock.render import MockUnit, render_unit

__all__ = ["MockUnit", "Recipe", "load_recipe", "render_unit"]
