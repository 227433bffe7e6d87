"""Fitting a reward to preferences."""
