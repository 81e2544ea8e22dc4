"""Zero points: ms an exposure by batch size on one core, ours and the published network in the same run.

``python benchmarks/zeropoint.py`` writes results/zeropoint.json. With ``--evaluate`` it also runs ``csstdask evaluate
zeropoint`` and writes results/zeropoint_evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from environment import RESULTS, environment, save

from csstdask.evaluation.io import round_floats
from csstdask.evaluation.zeropoint.evaluate import evaluate_zeropoint, format_results
from csstdask.evaluation.zeropoint.latency import latencies
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network
from csstdask.training.zeropoint.surveys import load_surveys
from csstdask.zeropoint.prior.build import build_network

#: Exposures of each survey that the measurement is made with.
EXPOSURES = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluate", action="store_true", help="also evaluate all methods")
    arguments = parser.parse_args()
    if arguments.evaluate:
        with tempfile.TemporaryDirectory() as folder:
            found = evaluate_zeropoint(Path(folder), on_progress=print)
        print("\n".join(format_results(found)))
        path = RESULTS / "zeropoint_evaluation.json"
        path.write_text(
            json.dumps(round_floats({"environment": environment(), **found}), indent=1, allow_nan=False) + "\n"
        )
    networks = {
        name: load_network(find_card("zeropoint", name), build_network, torch.device("cpu"))
        for name in ("zeropoint", "azprc")
    }
    surveys = load_surveys("zeropoint", EXPOSURES, memory=networks["zeropoint"].memory, image=False)
    save("zeropoint", round_floats(latencies(surveys, networks["zeropoint"], networks["azprc"])))


if __name__ == "__main__":
    main()
