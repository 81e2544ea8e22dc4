"""``csstdask label``: wrong usage is one line and exit code 2."""

from __future__ import annotations

import pytest
from shell import csstdask_command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flats", "{campaign}"), "unknown target 'flats'; choose one of: darks, repeats"),
        (("darks", "{campaign}"), "missing option '--to'"),
        (("darks", "{campaign}", "--to", "{tmp}/e.npz", "--against-truth"), "no such option: --against-truth"),
        (("darks", "{campaign}", "--to", "{tmp}/e.npz"), "no dark frame"),
        (("repeats", "{campaign}", "--to", "{tmp}/e.npz"), "no such option: --to"),
        (("repeats", "{campaign}"), "no repeats"),
        (("repeats", "{tmp}/nowhere.zarr"), "found nothing; wanted a csstdask campaign"),
    ],
)
def test_wrong_usage_of_labels_is_one_line(small_campaign, tmp_path, arguments, message):
    done = csstdask_command("label", *(one.format(campaign=small_campaign, tmp=tmp_path) for one in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
