"""Transfer functions against the Fourier transforms of their kernels, and images against the Airy pattern."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import j1

from csstdask.core.constants import RAD_PER_ARCSEC
from csstdask.optics.fourier import drift_transfer, gaussian_transfer, pixel_transfer, transform_pupil
from csstdask.optics.pupil import Pupil, cutoff_frequency, sample_pupil


def test_a_gaussian_transfer_is_the_transform_of_a_gaussian():
    x = np.linspace(-8, 8, 801)
    kernel = np.exp(-0.5 * (x[None, :] ** 2 / 0.6 + x[:, None] ** 2 / 0.3))  # xx = 0.6, yy = 0.3
    kernel /= kernel.sum()
    for fx, fy in ((0.3, 0.0), (0.2, -0.4)):
        transform = (kernel * np.cos(2 * np.pi * (fx * x[None, :] + fy * x[:, None]))).sum()
        assert gaussian_transfer(np.array(fx), np.array(fy), 0.6, 0.3) == pytest.approx(transform, abs=1e-6)


def test_boxes_have_sinc_transfers():
    frequency = np.array([0.0, 0.4, 1.0])
    box = np.array([np.mean(np.cos(2 * np.pi * one * np.linspace(-0.5, 0.5, 100001))) for one in frequency])
    assert pixel_transfer(frequency, np.zeros(3)) == pytest.approx(box, abs=1e-5)
    assert drift_transfer(frequency / 2, np.zeros(3), 2.0, 0.0) == pytest.approx(box, abs=1e-5)


def test_an_open_aperture_has_an_airy_pattern():
    pupil, wavelength, pixels, oversampling = Pupil(2.0, 0.0, 0.074), 600.0, 40, 8
    points = sample_pupil(wavelength, pupil, pixels)
    amplitude = transform_pupil(points.transmission[None].astype(np.complex64), points, pixels * oversampling)[0]
    image = np.abs(amplitude) ** 2
    radius = np.arange(1, 4 * oversampling) / oversampling  # [pixel]
    v = np.pi * pupil.diameter / (wavelength * 1e-9) * radius * pupil.pixel_scale * RAD_PER_ARCSEC
    assert image[0, 1 : len(radius) + 1] / image[0, 0] == pytest.approx((2 * j1(v) / v) ** 2, abs=0.01)


def test_no_frequency_passes_beyond_the_cutoff():
    pupil, wavelength, pixels, oversampling = Pupil(2.0, 0.3, 0.074), 600.0, 40, 4
    points = sample_pupil(wavelength, pupil, pixels)
    amplitude = transform_pupil(points.transmission[None].astype(np.complex64), points, pixels * oversampling)[0]
    spectrum = np.abs(np.fft.fft2(np.abs(amplitude) ** 2))
    frequency = np.fft.fftfreq(pixels * oversampling, 1 / oversampling)
    radius = np.hypot(frequency[:, None], frequency)
    beyond = radius > cutoff_frequency(wavelength, pupil.diameter, pupil.pixel_scale) + 2 / pixels  # soft edges
    assert spectrum[beyond].max() < 1e-5 * spectrum.max()
