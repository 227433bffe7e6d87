"""Rewards: heads, plain functions, and an algebra that makes rewards of rewards. One protocol for every modality."""

from genalign.reward.algebra import Hybrid, Pick, Sum
from genalign.reward.base import check_needs
from genalign.reward.build import build_reward, shipped_rewards
from genalign.reward.cache import Cached
from genalign.reward.clip import ClipReward
from genalign.reward.comparing import CompareJudge, RankJudge
from genalign.reward.ensemble import Ensemble, Repeat
from genalign.reward.exemplars import Exemplars, Similarity
from genalign.reward.function import FunctionReward, reward
from genalign.reward.gates import Cascade, Gate, Product
from genalign.reward.guard import guarded
from genalign.reward.harmonic import Harmonic
from genalign.reward.head import HeadReward, save_head
from genalign.reward.judges import ScoreJudge, YesNoJudge
from genalign.reward.means import KRC, Geometric, Min
from genalign.reward.multiplier import Constraint, Schedule, proxy_point
from genalign.reward.objectives import Conditioned, DynamicWeights, MarginalGain, Pareto
from genalign.reward.pairwise import BothOrders, Difference, Gpm, Preference, Versus, WinRate
from genalign.reward.presets import PRESETS, Calibrated
from genalign.reward.process import ProcessReward
from genalign.reward.remote import RemoteReward
from genalign.reward.rules import Budget, Format, Length, Repetition
from genalign.reward.runner import Runner
from genalign.reward.sets import SetReward
from genalign.reward.shaping import Shape
from genalign.reward.sharpness import Sharpness
from genalign.reward.structured import StructuredMatch
from genalign.reward.worker import FileReward

__all__ = [
    "KRC",
    "PRESETS",
    "BothOrders",
    "Budget",
    "Cached",
    "Calibrated",
    "Cascade",
    "ClipReward",
    "CompareJudge",
    "Conditioned",
    "Constraint",
    "Difference",
    "DynamicWeights",
    "Ensemble",
    "Exemplars",
    "FileReward",
    "Format",
    "FunctionReward",
    "Gate",
    "Geometric",
    "Gpm",
    "Harmonic",
    "HeadReward",
    "Hybrid",
    "Length",
    "MarginalGain",
    "Min",
    "Pareto",
    "Pick",
    "Preference",
    "ProcessReward",
    "Product",
    "RankJudge",
    "RemoteReward",
    "Repeat",
    "Repetition",
    "Runner",
    "Schedule",
    "ScoreJudge",
    "SetReward",
    "Shape",
    "Sharpness",
    "Similarity",
    "StructuredMatch",
    "Sum",
    "Versus",
    "WinRate",
    "YesNoJudge",
    "build_reward",
    "check_needs",
    "guarded",
    "proxy_point",
    "reward",
    "save_head",
    "shipped_rewards",
]
