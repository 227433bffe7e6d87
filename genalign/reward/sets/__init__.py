"""Measures of a set of samples, and the credit of each sample for it."""
