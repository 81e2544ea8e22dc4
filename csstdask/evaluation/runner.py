"""Run an evaluation: measure its sections, keep what is up to date, write JSON, tables and figures.

An evaluation consists of sections. A section is one measurement, usually one part of the evaluation on one test recipe,
together with the settings that decide its outcome. The settings are stored with the result. A later evaluation that
writes into the same folder measures only the sections whose settings differ, so an interrupted evaluation is resumed
and a finished one can be extended part by part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.evaluation.io import round_floats, write_results
from csstdask.mock import Recipe
from csstdask.mock.recipe import load_recipe

Results = dict[str, Any]
ProgressCallback = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """The result of a measured section."""

    result: Any
    """Numbers for the JSON file: dictionaries, lists, numbers and strings."""
    draw: Callable[[Path], object] | None = None
    """Writes the figures of the section into a folder."""


@dataclass(frozen=True)
class Section:
    """One measurement of an evaluation."""

    address: tuple[str, ...]
    """Keys under which the result is stored, outermost first; empty: the keys of the result are stored as they are."""
    measure: Callable[[], Measurement]
    settings: Mapping[str, Any] | None = None
    """Everything that decides the result; None: nothing is stored, and the section is measured every time."""
    resume: bool = True
    """Whether a stored result with equal settings is kept."""
    record: str = ""
    """Key under which the settings are stored; by default the address, joined by slashes."""
    title: str = ""
    """Progress message when the measurement starts; by default the key of the settings."""

    @property
    def key(self) -> str:
        """Return the key under which the settings are stored."""
        return self.record or "/".join(self.address)


@dataclass(frozen=True)
class Output:
    """Output folder and presentation of an evaluation."""

    folder: Path | None
    """None: nothing is written."""
    name: str
    """File name of the JSON file and of the Markdown page, without suffix."""
    lines: Callable[[Results], Iterable[str]] | None = None
    """Returns the lines of the Markdown page; None: no page."""
    draw: Callable[[Results, Path], None] | None = None
    """Writes figures of the whole evaluation into a folder."""
    records: str = "measured"
    """Key of the results under which the settings of the sections are stored."""

    def load(self) -> Results:
        """Return the stored results; an empty dictionary if there are none."""
        path = None if self.folder is None else self.folder / f"{self.name}.json"
        if path is None or not path.is_file():
            return {}
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        return results

    def write(self, results: Results) -> None:
        """Write JSON, Markdown and figures; each file is replaced atomically."""
        if self.folder is None:
            return
        write_results(self.folder / self.name, results, None if self.lines is None else self.lines(results))
        if self.draw is not None:
            self.draw(results, self.folder)


def run_evaluation(
    sections: Iterable[Section], output: Output, results: Results, *, on_progress: ProgressCallback
) -> Results:
    """Measure the sections that are not up to date, and write the results after each.

    Parameters
    ----------
    sections : iterable of Section
        Drawn one by one: a generator may prepare what the next section needs.
    output : Output
    results : dict
        Results to start from, usually those of `Output.load`. It is modified.
    on_progress : callable
        Receives one line per section.

    Returns
    -------
    dict
        The results, those of kept sections included.

    Examples
    --------
    >>> area = Section(("area",), lambda: Measurement(4.0), settings={"side": 2})
    >>> results = run_evaluation([area], Output(None, "example"), {}, on_progress=print)
    area
    >>> run_evaluation([area], Output(None, "example"), results, on_progress=print)
    area is up to date
    {'area': 4.0, 'measured': {'area': {'side': 2}}}
    """
    for section in sections:
        settings = None if section.settings is None else round_floats(dict(section.settings))
        records = results.get(output.records, {})
        is_stored = records.get(section.key) == settings and _holds(results, section.address)
        if section.resume and settings is not None and is_stored:
            on_progress(f"{section.key} is up to date")
            continue
        if section.title or section.key:
            on_progress(section.title or section.key)
        measurement = section.measure()
        _store(results, section.address, measurement.result)
        if settings is not None:
            results.setdefault(output.records, {})[section.key] = settings
        output.write(results)
        if measurement.draw is not None and output.folder is not None:
            measurement.draw(output.folder)
    return results


def _holds(results: Results, address: Sequence[str]) -> bool:
    level: Any = results
    for key in address:
        if not isinstance(level, dict) or key not in level:
            return False
        level = level[key]
    return True


def _store(results: Results, address: Sequence[str], result: Any) -> None:
    if not address:
        results.update(result)
        return
    level = results
    for key in address[:-1]:
        level = level.setdefault(key, {})
    level[address[-1]] = result


def select_parts(chosen: Sequence[str], parts: Iterable[str]) -> tuple[str, ...]:
    """Return the chosen parts of an evaluation, in the order in which they are evaluated.

    Parameters
    ----------
    chosen : sequence of str
        Parts that a caller asked for (``--only``).
    parts : iterable of str
        All parts, in order.

    Raises
    ------
    InputError
        If none is chosen, or one does not exist.

    Examples
    --------
    >>> select_parts(["m51", "science"], ("science", "fields", "m51"))
    ('science', 'm51')
    """
    known = tuple(parts)
    if not chosen or not set(chosen) <= set(known):
        raise InputError("--only", ", ".join(chosen) or "no part", f"some of {', '.join(known)}")
    return tuple(part for part in known if part in chosen)


def recipe_with_twin(folder: Path, name: str, *, scale: float | None = None, foreign: bool = True) -> Iterator[Recipe]:
    """Yield a test recipe and, where the folder has one, its ``-foreign`` twin.

    A foreign twin has the same layout with skies, telescopes or cosmic rays outside the range of the training.

    Parameters
    ----------
    folder : Path
        Folder of the test recipes.
    name : str
        Name of the recipe, without suffix.
    scale : float, optional
        Linear scale of the frames, in place of the recipe's own.
    foreign : bool
        Whether the twin is included.

    Raises
    ------
    InputError
        If the recipe does not exist.
    """
    yield load_recipe(folder / f"{name}.toml", scale=scale)
    twin = folder / f"{name}-foreign.toml"
    if foreign and twin.is_file():
        yield load_recipe(twin, scale=scale)


def recipe_digest(recipe: Recipe) -> str:
    """Return 16 hexadecimal digits that identify the content of a recipe."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:16]
