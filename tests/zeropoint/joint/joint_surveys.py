"""Simulated surveys for tests of the joint solve."""

from dataclasses import dataclass

import numpy as np

from csstdask.zeropoint.joint import StarObservations

GREY, SMALL = 0.02, 0.002


@dataclass
class Survey:
    seen: StarObservations
    reference: np.ndarray
    reference_variance: np.ndarray
    exposure: np.ndarray
    detector: np.ndarray
    epoch: np.ndarray
    truth: np.ndarray

    @property
    def arguments(self):
        return self.seen, self.reference, self.reference_variance, self.exposure, self.detector, self.epoch


def survey(
    rng, n_exposures=12, n_detectors=3, *, stars=60, noise=0.005, per_epoch=6, known=0.1, catalogue_error=0.01,
    anchored_exposures=None, reach=2, detector_shift=True, spread=0.1,
):  # fmt: skip
    """A ring-free chain of exposures: each shares `stars` stars per detector with each of the next `reach` ones.

    Stars of an overlap are seen by a detector of one exposure and the next detector of the other.
    """
    exposure = np.repeat(np.arange(n_exposures), n_detectors)
    detector = np.tile(np.arange(n_detectors), n_exposures)
    epoch = exposure // per_epoch
    term = rng.normal(25, spread, n_exposures)
    grey = rng.normal(0, GREY, (epoch.max() + 1, n_detectors))
    truth = term[exposure] + grey[epoch, detector] + rng.normal(0, SMALL, len(exposure))
    unit, star, first_exposure = [], [], []
    n = 0
    for one in range(n_exposures):
        for two in range(one + 1, min(one + reach + 1, n_exposures)):
            for d in range(n_detectors):
                labels = np.arange(n, n + stars)
                n += stars
                for e, shift in ((one, 0), (two, int(detector_shift))):
                    unit.append(np.full(stars, e * n_detectors + (d + shift) % n_detectors))
                    star.append(labels)
                first_exposure.append(np.full(stars, one))
    unit, star, first = (np.concatenate(one) for one in (unit, star, first_exposure))
    sky = rng.uniform(18, 22, n)
    listed = rng.random(n) < known
    if anchored_exposures is not None:
        listed &= np.isin(first, anchored_exposures)
    reference = np.where(listed, sky + catalogue_error * rng.normal(size=n), np.nan)
    variance = np.where(listed, catalogue_error**2, np.inf)
    magnitude = sky[star] - truth[unit] + noise * rng.normal(size=len(star))
    seen = StarObservations(unit.astype(np.int32), star.astype(np.int32), magnitude, np.full(len(star), noise**2))
    return Survey(seen, reference, variance, exposure, detector, epoch, truth)
