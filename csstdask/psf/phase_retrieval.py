"""Retrieve the wavefront of a detector from its stars, and derive from it a prior of the PSF field.

The prior over all telescopes (`csstdask.psf.basis`) treats the terms of a field as independent. But those of one
telescope belong together: a PSF is the squared Fourier transform of the pupil function, and over one detector the
wavefront in the pupil changes by little more than a plane. The mean PSF of the stars therefore shows the wavefront at
the centre of the detector, by phase retrieval (Gonsalves 1982, Opt. Eng. 21, 829; Krist & Burrows 1995, Appl. Opt. 34,
4951), and the wavefront predicts the few directions in which the PSF can change from there. Ellipticity, a product of
aberrations, cannot be predicted so by a linear model.

The unknowns are Zernike coefficients as quadratic polynomials of the position, a Gaussian blur, and a drift. A
Levenberg-Marquardt descent leads from a few random starts to the wavefront of the mean PSF, and from there to that of
the whole field. The coefficients of the basis, linearised about it, with an error of this model, are then the prior,
and the pixels of the stars decide. Which model error, and whether optics are used at all, is chosen by the evidence:
for stars that no aperture explains, nothing changes.

Stars in focus do not determine the sign of even orders: the mean defocus of a detector is taken to be positive. Where
it is nearly zero, the sign is arbitrary.

The prior of wavefronts and blurs is that of sixty mock telescopes (`csstdask.mock.random_telescopes`), widened; the
errors of the model are those that the fields of twelve telescopes outside the training set required.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.numerics.gaussian import GaussianPosterior, GaussianPrior
from csstdask.optics.zernike import noll_to_zernike
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, PsfBasis, polynomial_degrees, polynomials
from csstdask.psf.wavefront import DEGREE, FourierOptics, Wavefront, blur_transfer
from csstdask.psf.wavefront_descent import N_BLUR, Iterate, Objective

Float = npt.NDArray[np.float64]

#: Lowest Noll index of the wavefront: defocus.
_FIRST_ORDER = 4
#: Highest Noll index: first up to spherical aberration.
_LAST_ORDER = 11
#: Highest Noll index where the lower orders do not explain the mean PSF.
_LAST_HIGHER_ORDER = 22
#: Residual of the mean PSF above which higher orders are tried: chi^2 per principal image.
_MAX_RESIDUAL = 1.0
#: Smallest number of stars from which higher orders are retrieved.
_MIN_STARS_HIGHER_ORDERS = 10
#: Positions along each axis at which optics are computed: enough for cubic polynomials.
_NODES = 4
#: Prior 1 sigma of a coefficient of radial order one [nm]; divided by the radial order of others.
_WAVEFRONT_SIGMA = 75.0
#: Prior 1 sigma of linear terms of defocus over half a detector, as a share of its mean: detectors are tilted.
_DEFOCUS_TILT = 0.5
#: The same for linear terms of other orders.
_SLOPE = 0.2
#: The same for quadratic terms.
_CURVATURE = 0.05
#: Prior mean of the blur: covariance xx, yy, xy of a Gaussian [pixel^2], and drift in x and y [pixel].
_BLUR_MEAN = (0.25, 0.25, 0.0, 0.0, 0.0)
#: Prior 1 sigma of the blur.
_BLUR_SIGMA = (0.15, 0.15, 0.05, 0.8, 0.8)
#: Choices for the error of this model, as shares of the standard deviation between telescopes: in the mean PSF, and in
#: its change over the detector. A descent begins with large errors, because small ones have several minima.
_MODEL_ERRORS = ((0.5, 0.3), (0.5, 0.1), (0.5, 0.02), (0.15, 0.02))
#: Variance added to the error of each coefficient, so that the prior is not singular.
_MIN_VARIANCE = 1e-8
#: Largest number of random starts.
_MAX_STARTS = 8
#: Scatter of random starts, in units of the prior sigma.
_START_SCATTER = 0.6
#: Largest difference of the two lowest costs that ends the search, per principal image.
_SAME_MINIMUM = 0.01


class PhaseRetrieval:
    """Phase retrieval for the detectors of a band.

    Parameters
    ----------
    optics : FourierOptics
        Optics of the band.
    basis : PsfBasis
        Basis of the band.
    """

    def __init__(self, optics: FourierOptics, basis: PsfBasis) -> None:
        self.optics, self.basis = optics, basis

    def search(self, normal: Float, right: Float) -> Wavefront:
        """Retrieve the wavefront, of the lower orders, of the mean PSF of a detector.

        Parameters
        ----------
        normal : float64 array (a, a)
            Inverse covariance of the coefficients of the field, polynomial by polynomial, from the stars alone.
        right : float64 array (a,)
            `normal` times the coefficients.

        Returns
        -------
        Wavefront
            Constant over the detector; `sigma` is that of the prior.
        """
        return self.lower_orders(normal, right).search(None)

    def prior(
        self, normal: Float, right: Float, stars: int, start: Wavefront
    ) -> tuple[GaussianPosterior, Wavefront | None]:
        """Return the posterior of a field with the prior of the wavefront that its stars show.

        Parameters
        ----------
        normal, right
            As `search` takes them, from stars whose fit has converged.
        stars : int
            Number of stars.
        start : Wavefront
            Result of `search`.

        Returns
        -------
        GaussianPosterior
            With the prior of the largest evidence; without optics that is the prior of the basis.
        Wavefront or None
            The retrieved wavefront; None where the prior of the basis has the largest evidence.

        Notes
        -----
        Higher orders are tried only where the lower ones do not explain the mean PSF, and for stars whose fit has
        converged: the noise of faint stars that are fitted individually resembles them.

        The prior is linearised about the best wavefront of the same stars: its uncertainty does not
        include other minima.
        """
        lower = self.lower_orders(normal, right)
        found = lower.retrieve_field(start)
        narrowest, wavefront = found[-1]
        if self.optics.certain:
            return narrowest.given(normal, right), wavefront
        unexplained = lower.residual_after(wavefront) > _MAX_RESIDUAL * len(self.basis)
        if stars >= _MIN_STARS_HIGHER_ORDERS and unexplained:
            higher = ZernikeModes(self.optics, self.basis, _LAST_HIGHER_ORDER, normal, right)
            found += higher.retrieve_field(higher.search(start))
        candidates = [(prior.given(normal, right), shown) for prior, shown in [(self.basis.prior, None), *found]]
        return max(candidates, key=lambda candidate: candidate[0].evidence)

    def lower_orders(self, normal: Float, right: Float) -> ZernikeModes:
        """Return the retrieval with the lower orders only."""
        return ZernikeModes(self.optics, self.basis, _LAST_ORDER, normal, right)


class ZernikeModes:
    """A retrieval with all Zernike modes up to a last Noll index.

    Parameters
    ----------
    optics, basis
        As for `PhaseRetrieval`.
    last_order : int
        Noll index.
    normal, right
        As for `PhaseRetrieval.search`.
    """

    def __init__(self, optics: FourierOptics, basis: PsfBasis, last_order: int, normal: Float, right: Float) -> None:
        self.optics, self.basis, self.normal, self.right = optics, basis, normal, right
        self.orders = tuple(range(_FIRST_ORDER, last_order + 1))
        self.sigma = _prior_sigma(self.orders)

    @cached_property
    def mean_psf(self) -> tuple[Float, Float]:
        """Coefficients of the mean PSF (k,), and their inverse covariance (k, k).

        The prior of the mean PSF is flat; that of the other terms is the basis's.
        """
        k = len(self.basis)
        weak = self.basis.prior.covariance.copy()
        weak[:k, :k] *= 1e6
        posterior = GaussianPrior(self.basis.prior.mean, weak).given(self.normal, self.right)
        error = (_MODEL_ERRORS[0][0] ** 2) * np.diag(np.diag(self.basis.prior.covariance)[:k])
        weight = np.linalg.inv(posterior.covariance[:k, :k] + error)
        return posterior.mean[:k], np.asarray(weight, dtype=np.float64)

    def residual_after(self, wavefront: Wavefront) -> float:
        """Return chi^2 of the mean PSF, given a wavefront."""
        measured, weight = self.mean_psf
        predicted = self.predict_at_centre(np.append(wavefront.coefficients[0], wavefront.blur)).coefficients
        residual = measured - predicted
        return float(residual @ weight @ residual)

    def search(self, start: Wavefront | None) -> Wavefront:
        """Return the wavefront of the mean PSF, from a start, if given, and from random ones."""
        measured, weight = self.mean_psf
        mean, sigma = np.append(0 * self.sigma[0], _BLUR_MEAN), np.append(self.sigma[0], _BLUR_SIGMA)
        objective = Objective(weight, weight @ measured, mean, sigma)
        rng = np.random.default_rng(0)
        minima: list[tuple[Iterate, float]] = []
        for number in range(_MAX_STARTS):
            scatter = np.append(rng.normal(size=len(self.orders)), [0, 0, 0, *rng.normal(size=2)])
            unknowns = mean + _START_SCATTER * sigma * scatter
            if number == 0 and start is not None:
                unknowns[: len(start.orders)], unknowns[-N_BLUR:] = start.coefficients[0], start.blur
            minima.append(objective.descend(self.predict_at_centre, self.predict_at_centre(unknowns)))
            costs = np.sort([cost for _, cost in minima])
            if number and costs[1] - costs[0] < _SAME_MINIMUM * len(self.basis):
                break
        best, _ = min(minima, key=lambda minimum: minimum[1])
        coefficients = np.zeros_like(self.sigma)
        coefficients[0] = best.unknowns[:-N_BLUR]
        return Wavefront(self.orders, coefficients, self.sigma, best.unknowns[-N_BLUR:])

    def retrieve_field(self, start: Wavefront) -> list[tuple[GaussianPrior, Wavefront]]:
        """Return a prior and the wavefront of the whole field for each error of the model, from the largest.

        Parameters
        ----------
        start : Wavefront
            Wavefront of the mean PSF.
        """
        errors = [self._model_error(*shares) for shares in _MODEL_ERRORS]
        if self.optics.certain:
            errors.append(self._model_error(0.0, 0.0))
        mean = np.append(np.zeros(self.sigma.size), _BLUR_MEAN)
        sigma = np.append(self.sigma.ravel(), _BLUR_SIGMA)
        current = self.predict_field(np.append(start.coefficients.ravel(), start.blur))
        objectives = []
        for error in errors:
            share = np.linalg.inv(np.eye(len(error)) + self.normal @ error)
            weight = share @ self.normal
            objectives.append(Objective((weight + weight.T) / 2, share @ self.right, mean, sigma))
            current, _ = objectives[-1].descend(self.predict_field, current)
        expected = current.coefficients + current.jacobian @ (mean - current.unknowns)
        of_optics = (current.jacobian * sigma**2) @ current.jacobian.T
        priors = [GaussianPrior(expected, error + of_optics) for error in errors]
        return list(zip(priors, [self._wavefront(current, one) for one in objectives], strict=True))

    def predict_at_centre(self, unknowns: Float) -> Iterate:
        """Predict the coefficients (k,) of the PSF of one wavefront: orders [nm], then the blur."""
        _, _, fx, fy = self.optics.frequencies
        spectra = self.optics.spectra(self.orders, unknowns[:-N_BLUR])
        transfer, by_blur = blur_transfer(fx, fy, unknowns[-N_BLUR:])
        blurred = np.concatenate([spectra * transfer, spectra[0] * by_blur])
        projection, mean = _projection(self.optics, self.basis)
        coefficients = (blurred.view(np.float32) @ projection).astype(float).T
        return Iterate(unknowns, coefficients[:, 0] - mean, coefficients[:, 1:])

    def predict_field(self, unknowns: Float) -> Iterate:
        """Predict the coefficients of a field (a,): those at nodes, and polynomials through them."""
        axis, weight = np.polynomial.legendre.leggauss(_NODES)
        v, u = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
        terms = polynomials(u, v, DEGREE)
        blur = unknowns[-N_BLUR:]
        wavefronts = terms @ unknowns[:-N_BLUR].reshape(self.sigma.shape)
        nodes = [self.predict_at_centre(np.append(one, blur)) for one in wavefronts]
        at_nodes, jacobian = np.stack([one.coefficients for one in nodes]), np.stack([one.jacobian for one in nodes])
        by_zernike = np.einsum("nt,nkz->nktz", terms, jacobian[..., :-N_BLUR])
        jacobian = np.concatenate(
            [by_zernike.reshape(len(terms), len(self.basis), -1), jacobian[..., -N_BLUR:]], axis=2
        )
        root = np.sqrt(np.outer(weight, weight).ravel())
        design = polynomials(u, v, min(self.basis.degree, _NODES - 1))
        to_terms = np.linalg.pinv(design * root[:, None]) * root
        field, change = to_terms @ at_nodes, np.tensordot(to_terms, jacobian, 1)
        # Terms of a higher degree, and those of the colour, are not predicted.
        missing = [(0, len(self.normal) // len(self.basis) - len(to_terms)), (0, 0)]
        return Iterate(
            unknowns,
            np.pad(field, missing).ravel(),
            np.pad(change, [*missing, (0, 0)]).reshape(len(self.normal), -1),
        )

    def _model_error(self, of_mean: float, of_changes: float) -> Float:
        """Return the covariance of the error of this model, for shares of the scatter between telescopes.

        Colours are not in the model: the error of their terms is their prior.
        """
        k, terms = len(self.basis), len(polynomial_degrees(self.basis.degree))
        shares = np.repeat([of_mean, *[of_changes] * (terms - 1)], k)
        shares = np.append(shares, np.ones(len(self.normal) - len(shares)))
        covariance = self.basis.prior.covariance * shares * shares[:, None]
        return np.asarray(covariance + _MIN_VARIANCE * np.eye(len(shares)))

    def _wavefront(self, at: Iterate, objective: Objective) -> Wavefront:
        """Return the wavefront of unknowns, with the uncertainty that an objective leaves."""
        covariance = np.linalg.inv(objective.curvature(at))
        coefficients = at.unknowns[:-N_BLUR].reshape(self.sigma.shape)
        even = np.array([noll_to_zernike(order)[0] % 2 == 0 for order in self.orders])
        if coefficients[0, 0] < 0:
            coefficients = np.where(even, -coefficients, coefficients)
        sigma = np.sqrt(np.diag(covariance)[:-N_BLUR]).reshape(self.sigma.shape)
        return Wavefront(self.orders, coefficients, sigma, at.unknowns[-N_BLUR:])


def _prior_sigma(orders: tuple[int, ...]) -> Float:
    """Return the prior 1 sigma (p, order) of Zernike coefficients by polynomial of the position [nm]."""
    sigma = _WAVEFRONT_SIGMA / np.array([noll_to_zernike(order)[0] for order in orders])
    linear = np.where(np.array(orders) == _FIRST_ORDER, _DEFOCUS_TILT, _SLOPE)
    shares = {0: np.ones(len(orders)), 1: linear, 2: np.full(len(orders), _CURVATURE)}
    return np.stack([shares[sum(degrees)] * sigma for degrees in polynomial_degrees(DEGREE)])


@lru_cache(maxsize=16)
def _projection(optics: FourierOptics, basis: PsfBasis) -> tuple[npt.NDArray[np.float32], Float]:
    """Return the matrix (2 frequency, k) from spectra to coefficients, and the coefficients of the mean (k,).

    Rows are real and imaginary parts in turn.
    """
    k = len(basis)
    flat = basis.images.reshape(k, -1).astype(np.float64)
    dual = np.linalg.solve(basis.gram, flat).reshape(k, BASIS_SIZE, BASIS_SIZE)
    rows, columns, _, _ = optics.frequencies
    # Parseval: a product of images is one of spectra, of which the other half is the complex conjugate.
    spectrum = fft.rfft2(np.fft.ifftshift(dual, axes=(-2, -1)))[:, rows, columns]
    spectrum = spectrum * np.where(columns > 0, 2, 1) / BASIS_SIZE**2 * OVERSAMPLING**2
    parts = np.stack([spectrum.real, spectrum.imag], axis=-1).reshape(k, -1)
    return np.ascontiguousarray(parts.T.astype(np.float32)), basis.project(basis.mean[None])[0]
