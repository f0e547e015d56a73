"""Measurements. Machines differ and are noisy: read the ratios, which are taken within one run."""
