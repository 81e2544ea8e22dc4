"""Clusters that cannot start: one line that says why, and what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import types

import pytest

from csstdask.core.errors import ClusterError, InputError
from csstdask.core.optional import install_hint
from csstdask.engine.cluster import open_cluster


def one_line(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_slurm_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(InputError, match=re.escape("pip install -e '.[slurm]'")), open_cluster("slurm", 1):
        pass


def fake_jobqueue(monkeypatch, make) -> None:
    module = types.ModuleType("dask_jobqueue")
    module.SLURMCluster = make
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)


def test_slurm_without_configuration(monkeypatch):
    """What dask-jobqueue raises where no configuration file describes a job."""

    def make():
        raise ValueError("You must specify how many cores to use per job like ``cores=8``")

    fake_jobqueue(monkeypatch, make)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(InputError) as caught, open_cluster("slurm", 1):
        pass
    text = one_line(caught.value)
    assert "cores" in text
    assert "~/.config/dask/jobqueue.yaml" in text


def test_slurm_on_a_machine_without_it(monkeypatch):
    """Without sbatch the driver would wait for its first worker for a day."""
    fake_jobqueue(monkeypatch, lambda: pytest.fail("a cluster was made"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="no command sbatch"), open_cluster("slurm", 1):
        pass


def test_a_worker_that_is_killed_while_it_starts(tmp_path):
    import dask

    (tmp_path / "kill.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with (
        dask.config.set({"distributed.worker.preload": [str(tmp_path / "kill.py")]}),
        pytest.raises(ClusterError) as caught,
        open_cluster("processes", 2),
    ):
        pass
    assert "ended while it started" in one_line(caught.value)
    assert "fewer --workers" in one_line(caught.value)


SCRIPT = """
import sys
from csstdask.engine.cluster import open_cluster
from csstdask.core.errors import CsstdaskError
try:
    with open_cluster("processes", 1) as slots:
        print("slots", slots.count)
except CsstdaskError as error:
    print(error)
"""


def test_a_script_without_a_guard(tmp_path):
    """Its workers import it and open clusters again: one line names the script and the guard, nothing else is said."""
    script = tmp_path / "night.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert str(script) in line
    assert 'if __name__ == "__main__":' in line


def test_a_script_with_a_guard(tmp_path):
    script = tmp_path / "night.py"
    body = "\n".join(f"    {line}" for line in SCRIPT.splitlines() if line)
    script.write_text(f'if __name__ == "__main__":\n{body}\n')
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout, done.stderr) == ("slots 1\n", "")


@pytest.mark.parametrize("scheduler", ["cuda", "slurm"])
def test_on_the_command_line(small_campaign, tmp_path, scheduler, monkeypatch):
    from shell import csstdask_command

    for module in ("dask_cuda", "dask_jobqueue"):
        monkeypatch.setitem(sys.modules, module, None)
    done = csstdask_command("run", small_campaign, "--to", tmp_path / "r.zarr", "--scheduler", scheduler)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert install_hint({"cuda": "gpu", "slurm": "slurm"}[scheduler]) in line


def test_the_dashboard_needs_bokeh(monkeypatch):
    monkeypatch.setattr("csstdask.engine.cluster.find_spec", lambda name: None)
    with open_cluster("threads", 1) as slots:
        assert slots.dashboard is None
    monkeypatch.setattr("csstdask.engine.cluster.find_spec", lambda name: object())
    with open_cluster("threads", 1) as slots:
        assert slots.dashboard == (slots.client.dashboard_link or None)
