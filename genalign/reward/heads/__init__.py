"""Rewards that score each sample by themselves, with weights or without."""
