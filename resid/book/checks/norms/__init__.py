"""Checks of Part III: norms of gradients, spectra of convolutions, projections."""
