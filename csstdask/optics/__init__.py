"""Pupils, Zernike polynomials and Fourier optics, shared by the mock and the PSF models."""
