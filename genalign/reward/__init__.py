"""Rewards: heads, plain functions, and an algebra that makes rewards of rewards. One protocol for every modality."""

from genalign.reward.algebra import Hybrid, Sum
from genalign.reward.base import check_needs
from genalign.reward.build import build_reward, shipped_rewards
from genalign.reward.cache import Cached
from genalign.reward.clip import ClipReward
from genalign.reward.comparing import CompareJudge, RankJudge
from genalign.reward.exemplars import Exemplars, Similarity
from genalign.reward.function import FunctionReward, reward
from genalign.reward.harmonic import Harmonic
from genalign.reward.head import HeadReward, save_head
from genalign.reward.judges import ScoreJudge, YesNoJudge
from genalign.reward.pairwise import BothOrders, Difference, Gpm, Preference, Versus, WinRate
from genalign.reward.presets import PRESETS, Calibrated
from genalign.reward.process import ProcessReward
from genalign.reward.remote import RemoteReward
from genalign.reward.runner import Runner, guarded
from genalign.reward.sets import SetReward
from genalign.reward.sharpness import Sharpness
from genalign.reward.worker import FileReward

__all__ = [
    "PRESETS",
    "BothOrders",
    "Cached",
    "Calibrated",
    "ClipReward",
    "CompareJudge",
    "Difference",
    "Exemplars",
    "FileReward",
    "FunctionReward",
    "Gpm",
    "Harmonic",
    "HeadReward",
    "Hybrid",
    "Preference",
    "ProcessReward",
    "RankJudge",
    "RemoteReward",
    "Runner",
    "ScoreJudge",
    "SetReward",
    "Sharpness",
    "Similarity",
    "Sum",
    "Versus",
    "WinRate",
    "YesNoJudge",
    "build_reward",
    "check_needs",
    "guarded",
    "reward",
    "save_head",
    "shipped_rewards",
]
