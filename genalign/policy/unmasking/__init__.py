"""Diffusion language models as policies: answers are written at several places at a time, in no fixed order."""

from genalign.policy.unmasking.load import load_unmasking
from genalign.policy.unmasking.policy import UnmaskingPolicy
from genalign.policy.unmasking.turns import Written

__all__ = ["UnmaskingPolicy", "Written", "load_unmasking"]
