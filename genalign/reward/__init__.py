"""Rewards: heads, plain functions, and an algebra that makes rewards of rewards. One protocol for every modality."""

from genalign.reward.bridge import from_trl, to_trl
from genalign.reward.build import build_reward, shipped_rewards
from genalign.reward.combine.algebra import Hybrid, Pick, Sum
from genalign.reward.combine.ensemble import Ensemble, Repeat
from genalign.reward.combine.gates import Cascade, Gate, Product
from genalign.reward.combine.means import KRC, Geometric, Harmonic, Min
from genalign.reward.combine.multiplier import Constraint, Schedule, proxy_point
from genalign.reward.combine.objectives import Conditioned, DynamicWeights, MarginalGain, Pareto
from genalign.reward.combine.pairwise import BothOrders, Difference, Gpm, Preference, Versus, WinRate
from genalign.reward.combine.shaping import Shape
from genalign.reward.function import FunctionReward, reward
from genalign.reward.guard import guarded
from genalign.reward.heads.clip import ClipReward
from genalign.reward.heads.exemplars import Exemplars, Similarity
from genalign.reward.heads.head import HeadReward, save_head
from genalign.reward.heads.published import PRESETS, Calibrated
from genalign.reward.heads.rules import Budget, Format, Length, RankAgreement, Repetition
from genalign.reward.heads.sharpness import Sharpness
from genalign.reward.heads.structured import StructuredMatch
from genalign.reward.judge.comparing import CompareJudge, RankJudge
from genalign.reward.judge.judges import ScoreJudge, YesNoJudge
from genalign.reward.judge.questions import QuestionsJudge
from genalign.reward.needs import check_needs
from genalign.reward.runtime.cache import Cached
from genalign.reward.runtime.process import ProcessReward
from genalign.reward.runtime.remote import RemoteReward
from genalign.reward.runtime.runner import Runner
from genalign.reward.runtime.worker import FileReward
from genalign.reward.sets.reward import SetReward

__all__ = [  # noqa: RUF022  # by kind
    # a reward from a reward file, from a function, from a user's file
    "build_reward",
    "shipped_rewards",
    "check_needs",
    "reward",
    "FunctionReward",
    "FileReward",
    # for TRL's trainers, and from their functions
    "to_trl",
    "from_trl",
    # how it is called: failures masked, in batches, cached, in a process, behind a server
    "guarded",
    "Runner",
    "Cached",
    "ProcessReward",
    "RemoteReward",
    # heads: each sample by itself, with weights or without
    "ClipReward",
    "HeadReward",
    "save_head",
    "Similarity",
    "Exemplars",
    "Sharpness",
    "PRESETS",
    "Calibrated",
    "Length",
    "Budget",
    "Format",
    "Repetition",
    "RankAgreement",
    "StructuredMatch",
    # judges: questions to a vision-language or language model
    "YesNoJudge",
    "ScoreJudge",
    "QuestionsJudge",
    "CompareJudge",
    "RankJudge",
    # a measure of the whole set of samples
    "SetReward",
    # combinations: sums and means
    "Sum",
    "Hybrid",
    "Pick",
    "Geometric",
    "Harmonic",
    "KRC",
    "Min",
    # combinations: gates and factors
    "Cascade",
    "Gate",
    "Product",
    # combinations: opinions, and how far they differ
    "Ensemble",
    "Repeat",
    # combinations: units, bounds, and weights that move while training
    "Shape",
    "Schedule",
    "Constraint",
    "proxy_point",
    # combinations: several objectives
    "Pareto",
    "Conditioned",
    "MarginalGain",
    "DynamicWeights",
    # preferences between two samples, and rewards made of them
    "Preference",
    "Difference",
    "Gpm",
    "BothOrders",
    "WinRate",
    "Versus",
]
