"""Recover accuracy without training: calibration data, staged runs, least squares, and what they say of the units."""
