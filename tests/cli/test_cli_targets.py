"""``csstdask train`` and ``evaluate``: their targets, wrong usage, and former spellings of options."""

from __future__ import annotations

import pytest
from shell import csstdask_command

from csstdask.core.errors import InputError

TARGETS = {
    "train": ("cosmicray", "inpaint", "psf", "sed", "zeropoint"),
    "evaluate": ("cosmicray", "inpaint", "psf", "sed", "flat", "zeropoint"),
    "label": ("darks", "repeats"),
}


def is_one_line(done, text):
    return done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and text in done.stderr


@pytest.mark.parametrize("verb", TARGETS)
def test_an_unknown_target_is_refused_in_one_line(verb):
    expected = f"unknown target 'nosuch'; choose one of: {', '.join(TARGETS[verb])}"
    assert is_one_line(csstdask_command(verb, "nosuch"), expected)
    assert is_one_line(csstdask_command(verb, "nosuch", "--to", "x"), expected)
    assert is_one_line(csstdask_command(verb), "missing command")


@pytest.mark.parametrize("verb", TARGETS)
def test_every_target_has_help(verb):
    """Without words of earlier versions."""
    for target in TARGETS[verb]:
        done = csstdask_command(verb, target, "--help")
        assert done.returncode == 0
        assert f"csstdask {verb} {target} [OPTIONS]" in done.stdout
        for word in ("beside", "gone on", "--from ", "--part"):
            assert word not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("train", "cosmicray"), "missing option '--to'"),
        (("train", "psf", "--to", "x", "--data", "y"), "no such option: --data"),
        (("train", "zeropoint", "--to", "x", "--device", "cpu"), "no such option: --device"),
        (("train", "inpaint", "--to", "x", "--epochs", "0"), "--epochs"),
        (("train", "inpaint", "--to", "x"), "campaigns: Field required"),
        (("train", "sed", "--to", "x"), "data: Field required"),
        (("evaluate", "psf"), "missing option '--recipes'"),
        (("evaluate", "sed"), "missing option '--data'"),
        (("evaluate", "flat"), "missing option '--to'"),
        (("evaluate", "inpaint", "--precision", "int8"), "no such option: --precision"),
        (("evaluate", "cosmicray", "--run", "r.zarr", "--model", "unet"), "--run: cannot be combined"),
        (("evaluate", "zeropoint", "--table", "t.csv", "--only", "methods"), "--table: cannot be combined"),
        (("evaluate", "zeropoint", "--table", "t.csv"), "--to: needed with --table"),
        (("models", "--from-deepcr", "w.pth"), "--to: needed with --from-deepcr"),
        (("config",), "SETTINGS: give a TOML file, a run or --defaults"),
        (("sed", "spectrum.fits"), "missing option '--to'"),
        (("zeropoint", "t.parquet", "--to", "z.json"), "missing option '--reference'"),
    ],
)
def test_wrong_usage_is_one_line(arguments, text, tmp_path):
    assert is_one_line(csstdask_command(*arguments, cwd=tmp_path), text)
    assert not list(tmp_path.iterdir())


def test_former_spellings_of_options_are_accepted(tmp_path, monkeypatch):
    """--beside, --part and --from are those of earlier versions."""
    from csstdask.evaluation.sed import evaluate
    from csstdask.training.psf import train

    received = {}
    monkeypatch.setattr(evaluate, "evaluate_sed", lambda *_, **options: received.update(options))
    monkeypatch.setattr(evaluate, "summary_lines", lambda _: [])
    for compare_with, only in (("--beside", "--part"), ("--compare-with", "--only")):
        received.clear()
        done = csstdask_command("evaluate", "sed", "--data", tmp_path, compare_with, "uaranet", only, "miles")
        assert done.returncode == 0, done.stderr
        assert list(received["parts"]) == ["miles"]
        assert ("uaranet",) in received.values()

    def refuse(_, **settings):
        raise InputError("settings", str(settings["start_from"]), "nothing")

    monkeypatch.setattr(train, "load_psf_config", refuse)
    for start_from in ("--from", "--start-from"):
        assert is_one_line(csstdask_command("train", "psf", "--to", tmp_path, start_from, "psfnet"), "found psfnet")
