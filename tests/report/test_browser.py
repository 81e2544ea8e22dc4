"""The page in a browser: no errors, tables that sort and search, nothing wider than a phone.

A script at the end of a copy of the page does what a reader does, and writes what it sees into the document, which
Chromium prints. It runs where a Chromium is installed.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


def browse(page: str, folder: Any, script: str, *, width: int = 1200, options: tuple[str, ...] = ()) -> Any:
    """Return the value of a script's function body on a page, and the messages of the console.

    The page is shown in a frame of the given width: a browser's own window may have a least width.
    """
    probe = (
        "<script>window.addEventListener('error', (event) => console.error(event.message));"
        f"window.addEventListener('load', () => {{ const value = (() => {{ {script} }})();"
        "parent.document.getElementById('seen').textContent = JSON.stringify(value); });</script>"
    )
    inner = html.escape(page.replace("</body>", f"{probe}</body>"), quote=True)
    (folder / "outer.html").write_text(
        f'<!doctype html><pre id="seen"></pre><iframe style="border:0" width="{width}" height="900" srcdoc="{inner}">'
        "</iframe>",
        encoding="utf-8",
    )
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        "--dump-dom", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", *options,
        (folder / "outer.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen is not None, done.stderr
    assert seen.group(1), done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(seen.group(1))), console


def test_script_errors_are_detected(tmp_path):
    """The control of the tests below."""
    page = "<!doctype html><html><body><script>missing();</script></body></html>"
    seen, console = browse(page, tmp_path, "return innerWidth;", width=390)
    assert seen == 390
    assert any("missing" in line for line in console)


def test_page_opens_without_errors_and_sorts(damaged, tmp_path):
    script = """
    const head = [...document.querySelectorAll("#units-main th")];
    const column = head.findIndex((one) => one.dataset.name === "cr_fraction");
    const values = () => [...document.querySelectorAll("#units-main tbody tr")].map(
      (row) => row.cells[column].textContent);
    head[column].click();
    const up = values();
    head[column].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
    return { up, down: values(), sorted: head[column].getAttribute("aria-sort"), title: document.title };
    """
    seen, console = browse(damaged[2], tmp_path, script)
    assert console == []
    assert seen["title"] == "r.zarr: csstdask report"
    assert seen["sorted"] == "descending"
    known = [float(value) for value in seen["up"] if value != "–"]
    assert len(known) == 3
    assert known == sorted(known)
    assert seen["up"][-1] == seen["down"][-1] == "–"  # the unit that failed
    assert [float(value) for value in seen["down"][:-1]] == known[::-1]


def test_search_and_links_to_rows(damaged, tmp_path):
    script = """
    const input = document.querySelector("input[data-search]");
    const find = (text) => {
      input.value = text;
      input.dispatchEvent(new Event("input"));
      return [...document.querySelectorAll("#units-main tbody tr:not([hidden])")].map((row) => row.id);
    };
    const found = ["detector=8", "state=failed", "10100000001 detector=7", "nothing"].map(find);
    document.querySelector("a[data-find='detector=8']").dispatchEvent(new MouseEvent("click", { bubbles: true }));
    const plane = document.querySelectorAll("#units-main tbody tr:not([hidden])").length;
    document.querySelector("td a[href='#unit-10100000002-7']").click();
    const hidden = document.getElementById("unit-10100000002-7").hidden;
    return { found, plane, hidden, count: input.closest(".search").querySelector("output").value };
    """
    seen, console = browse(damaged[2], tmp_path, script)
    assert console == []
    assert seen["found"] == [
        ["unit-10100000001-8", "unit-10100000002-8"],
        ["unit-10100000002-7"],
        ["unit-10100000001-7"],
        [],
    ]
    assert (seen["plane"], seen["hidden"], seen["count"]) == (2, False, "4 of 4 rows")


def test_page_fits_a_phone(damaged, tmp_path):
    script = """
    for (const one of document.querySelectorAll("details")) one.open = true;
    const wide = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth
      && !one.closest(".wide, pre, figure.plot")).map((one) => one.outerHTML.slice(0, 80));
    return { page: document.documentElement.scrollWidth, window: innerWidth, wide };
    """
    seen, _ = browse(damaged[2], tmp_path, script, width=390)
    assert seen == {"page": 390, "window": 390, "wide": []}


def test_dark_mode_follows_the_preference(damaged, tmp_path):
    script = """
    const style = getComputedStyle(document.body);
    const text = document.querySelector("figure.plot svg text, svg.drawing > text");
    return { paper: style.backgroundColor, ink: style.color, plot: getComputedStyle(text).fill };
    """
    light, _ = browse(damaged[2], tmp_path, script)
    dark, _ = browse(damaged[2], tmp_path, script, options=("--blink-settings=preferredColorScheme=0",))
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == "rgb(22, 24, 27)"
    for seen in (light, dark):
        assert seen["plot"] == seen["ink"]
