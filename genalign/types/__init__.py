"""The nouns of genalign. Every other room speaks in these and in nothing else.

    prompt -> Policy.rollout -> Trajectory(media, logp (B,S)) -> Reward -> Scores (B,K) -> Method.losses -> backward

A *step* is a denoising step or a token: whatever one row of log-probabilities is indexed by. Letters in shapes: B rows,
S steps, K aspects of a reward, R rows of a micro-batch.
"""

from genalign.types.capabilities import (
    ChecksPrompts,
    Differentiable,
    ForwardProcess,
    Guide,
    Pausing,
    SavesMemory,
    Scoring,
    Shardable,
    Writing,
)
from genalign.types.errors import EndedError, GenalignError, UsageError, nearest
from genalign.types.protocols import CoreReward, Method, Policy, Reward, Weights
from genalign.types.records import Experience, Loss, Scores, Steps, Trajectory
from genalign.types.samples import (
    MODALITIES,
    SIBLING_BITS,
    Media,
    Modality,
    Prompt,
    Track,
    family_seed,
    sample_seed,
    sibling_seed,
)

__all__ = [
    "MODALITIES",
    "SIBLING_BITS",
    "ChecksPrompts",
    "CoreReward",
    "Differentiable",
    "EndedError",
    "Experience",
    "ForwardProcess",
    "GenalignError",
    "Guide",
    "Loss",
    "Media",
    "Method",
    "Modality",
    "Pausing",
    "Policy",
    "Prompt",
    "Reward",
    "SavesMemory",
    "Scores",
    "Scoring",
    "Shardable",
    "Steps",
    "Track",
    "Trajectory",
    "UsageError",
    "Weights",
    "Writing",
    "family_seed",
    "nearest",
    "sample_seed",
    "sibling_seed",
]
