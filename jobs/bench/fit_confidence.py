"""Fits what `homoalign/trust/confidence.py` is made of: `make confidence`.

The pairs are those of a `homoalign bench trust --split fit --json` file. The coefficients are those of the greatest
likelihood of which answers were right, held by a weak prior as far as the pairs say little.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch

from homoalign.trust.confidence import COEFFICIENTS, Calibration, confidence
from homoalign.trust.evidence import EVIDENCE, Evidence
from jobs.bench.methods import HOMOALIGN

Floats = npt.NDArray[np.float64]

PRIOR = {
    "base": (0.0, 2.0),
    "parts_here": (np.log(0.3), 1.0),
    "correlation": (np.log(0.3), 1.0),
    "error": (np.log(2.0), 0.5),
    "no_rival": (20.0, 100.0),
    "rival": (20.0, 100.0),
}
"""Mean and standard deviation of each coefficient, of the logarithms of those in `POSITIVE`.

Those of the rival are all but free: the pairs say how steep the step is from one a hundredth worse to one as good."""

POSITIVE = ("parts_here", "correlation", "error")

LEAST_PROBABILITY = 1e-6


@click.command()
@click.argument("trust", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(trust: Path) -> None:
    """Fit the coefficients to the pairs of TRUST, and write them into the package."""
    document = json.loads(trust.read_text())
    outcomes = [outcome for outcome in document["outcomes"] if outcome["method"] == HOMOALIGN]
    table = [[outcome["evidence"][name] for name in EVIDENCE] for outcome in outcomes]
    evidence = Evidence.of_table(torch.tensor(np.array(table, dtype=np.float64)))
    is_right = np.array([outcome["is_right"] for outcome in outcomes])
    fitted_on = {
        **{name: document[name] for name in ("split", "seed", "size")},
        "pairs": dict(Counter(outcome["group"] for outcome in outcomes)),
        "photographs": document["photographs"],
        "right": int(is_right.sum()),
    }
    coefficients = dataclasses.asdict(fit(evidence, is_right))
    path = Path(str(files("homoalign.trust"))) / COEFFICIENTS
    path.write_text(json.dumps({"coefficients": coefficients, "fitted_on": fitted_on}, indent=2) + "\n")
    click.echo(f"{path}: fitted on {len(outcomes)} pairs, {fitted_on['right']} of them right")


def fit(evidence: Evidence, is_right: npt.NDArray[np.bool_]) -> Calibration:
    """Return the coefficients under which what was right is most likely; B pairs."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    def loss(parameters: Floats) -> float:
        probability = confidence(evidence, _calibration(parameters)).numpy()
        probability = probability.clip(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        surprise = -np.log(np.where(is_right, probability, 1 - probability)).sum()
        return float(surprise + 0.5 * (((parameters - mean) / spread) ** 2).sum())

    mean, spread = np.array(list(PRIOR.values())).T
    return _calibration(minimize(loss, mean, method="BFGS").x)


def _calibration(parameters: Floats) -> Calibration:
    named = zip(PRIOR, map(float, parameters), strict=True)
    return Calibration(**{name: float(np.exp(value)) if name in POSITIVE else value for name, value in named})


if __name__ == "__main__":
    main()
