"""Rewards by the answers of a vision-language or language model."""
