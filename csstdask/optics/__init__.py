"""Pupils, Zernike polynomials, black bodies and Fourier optics, shared by the mock and the PSF models."""
