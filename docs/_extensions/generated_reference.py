"""Generate the reference pages of commands, settings, recipes, cameras and models from the code itself."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "reference" / "generated"


def command_page() -> str:
    """Return the reference of the shell commands."""
    from csstdask.cli import app  # noqa: PLC0415

    lines = [
        "# Commands",
        "",
        "Exit codes: 0, all done; 1, finished, but some units or files failed, each named with its reason;",
        "2, wrong usage or unusable input, in one line; 130 (Ctrl-C) and 143 (SIGTERM), stopped, finished units kept.",
        "",
    ]
    lines += _commands(typer.main.get_command(app), "csstdask", 2)
    return "\n".join(lines)


def _commands(command: Any, name: str, level: int) -> Iterator[str]:
    children = getattr(command, "commands", {})
    if level > 2 or not children:
        yield f"{'#' * level} `{name}`"
        yield ""
        yield (command.help or "").split("\f")[0].strip()
        yield ""
        yield from _parameters(command)
    for child, one in children.items():
        if not one.hidden:
            yield from _commands(one, f"{name} {child}", min(level + (name != "csstdask"), 4))


def _parameters(command: Any) -> Iterator[str]:
    shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    if not shown:
        return
    yield "| argument or option | meaning |"
    yield "| --- | --- |"
    for one in shown:
        names = ", ".join(f"`{opt}`" for opt in (*one.opts, *one.secondary_opts) if opt.startswith("-"))
        names = names or f"`{(one.metavar or one.name).upper()}`"
        text = (getattr(one, "help", None) or "").replace("\n", " ").replace("|", "\\|")
        default = one.default
        if isinstance(default, str | int | float) and not isinstance(default, bool) and default not in ("", 0):
            text += f" Default: `{default}`."
        yield f"| {names} | {text} |"
    yield ""


def model_table(model: type[BaseModel], title: str, level: int = 2) -> Iterator[str]:
    """Yield the tables of a pydantic model and of the models it holds."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    yield from _table(schema, definitions, title, level, set())


def _table(
    schema: dict[str, Any], definitions: dict[str, Any], title: str, level: int, done: set[str]
) -> Iterator[str]:
    nested: list[tuple[str, dict[str, Any]]] = []
    yield f"{'#' * level} {title}"
    yield ""
    rows = []
    for name, field in schema.get("properties", {}).items():
        reference = _reference(field)
        if reference and "properties" in definitions.get(reference, {}):
            if reference not in done:
                done.add(reference)
                nested.append((f"{title.split(' ', maxsplit=1)[0].strip('`[]')}.{name}", definitions[reference]))
            rows.append((name, f"table, see `{name}` below", field.get("description", "")))
        else:
            default = field.get("default", "")
            rows.append(
                (name, f"`{json.dumps(default)}`" if "default" in field else "required", field.get("description", ""))
            )
    if rows:
        yield "| key | default | meaning |"
        yield "| --- | --- | --- |"
        for name, default, text in rows:
            yield f"| `{name}` | {default[:80]} | {' '.join(str(text).split())} |"
        yield ""
    for name, one in nested:
        yield from _table(one, definitions, f"`[{name.split('.')[-1]}]`", min(level + 1, 4), done)


def _reference(field: dict[str, Any]) -> str:
    for one in (field, field.get("items", {}), *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in one:
            return str(one["$ref"]).rsplit("/", 1)[1]
    return ""


def settings_page() -> str:
    """Return the reference of the settings of a run."""
    from csstdask.pipeline.config import RunConfig  # noqa: PLC0415

    head = [
        "# Settings of a run",
        "",
        "Settings are a TOML file: `csstdask config --defaults > run.toml` writes one with all of them, and",
        "`csstdask run --config run.toml` uses it. Unknown keys are an error. A changed setting recomputes the steps",
        "that depend on it, and no others.",
        "",
    ]
    return "\n".join([*head, *model_table(RunConfig, "Run")])


def recipe_page() -> str:
    """Return the reference of recipes: those that are included, and all keys."""
    from csstdask.mock.recipe import Recipe  # noqa: PLC0415

    lines = [
        "# Recipes",
        "",
        "A recipe describes a mock survey: `csstdask mock RECIPE --to campaign.zarr`. It is a TOML file or the name",
        "of an included one.",
        "",
        "| included | exposures x detectors, pixels (y, x) |",
        "| --- | --- |",
    ]
    for path in sorted((ROOT / "stores").glob("*.toml")):
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        count = f"{found.get('exposures', 4)} x {len(found.get('detectors', ()))}"
        lines.append(f"| `{path.stem}` | {count}, {' x '.join(map(str, found.get('shape', ())))} |")
    lines += ["", *model_table(Recipe, "Recipe")]
    return "\n".join(lines)


def camera_page() -> str:
    """Return the reference of camera files: those that are included, and all keys."""
    from csstdask.instrument import Instrument, builtin_names, load_instrument  # noqa: PLC0415

    lines = [
        "# Camera files",
        "",
        "A camera is described by one TOML file ([how to write one](../../how-to/add-a-camera.md)). Included are:",
        "",
        "| name | description |",
        "| --- | --- |",
    ]
    lines += [f"| `{name}` | {load_instrument(name).description} |" for name in builtin_names()]
    lines += ["", *model_table(Instrument, "Camera")]
    return "\n".join(lines)


def model_page() -> str:
    """Return the reference of the included models."""
    from csstdask.nn.models import DEFAULTS, all_cards  # noqa: PLC0415

    lines = [
        "# Included models",
        "",
        "`csstdask models` prints this list with checksums and metrics. Names are values of `model=` in Python and of",
        "`model` in settings.",
        "",
        "| name | task | default | version | trained on | licence |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for card in all_cards():
        default = "yes" if DEFAULTS.get(card.task) == card.name else ""
        trained_on = " ".join(str(card.trained_on).split())
        lines.append(f"| `{card.name}` | {card.task} | {default} | {card.version} | {trained_on} | {card.licence} |")
    return "\n".join([*lines, ""])


PAGES = {
    "commands": command_page,
    "settings": settings_page,
    "recipes": recipe_page,
    "camera-files": camera_page,
    "models": model_page,
}


def write_pages(_app: Sphinx | None = None) -> None:
    """Write the generated pages; unchanged files are left alone, so that Sphinx does not read them again."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        path, text = TARGET / f"{name}.md", make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the generator with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
