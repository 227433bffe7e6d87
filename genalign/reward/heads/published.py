"""Rewards by the names that users know (`use: pickscore`): which class, which checkpoint, on what terms."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from genalign.reward.base import digest
from genalign.reward.heads.clip import ClipReward
from genalign.reward.prefetch import Prefetch
from genalign.reward.wrapper import Wrapper
from genalign.types import Media, Prompt, Reward, Scores, UsageError

CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
WORDS = ("tokenizer.json", "tokenizer_config.json")
SEEN = ("config.json", "preprocessor_config.json", *WORDS)
QWEN_2B, QWEN_7B = "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"
VIDEOSCORE = "TIGER-Lab/VideoScore2"
SAFE = "Falconsai/nsfw_image_detection"
CLAP, SKYWORK = "laion/larger_clap_general", "Skywork/Skywork-Reward-V2-Qwen3-0.6B"


@dataclass(frozen=True)
class Preset:
    """address: the class. settings: its arguments, but for what the hub holds as a pickle alone. licence: of the
    weights, as their card states it. gigabytes: of all downloads, about. scale: what raw scores mean. files: what must
    be on this machine, by repository. pickled: (repository, file, setting): what to download, convert and name.
    published: mean and std of each aspect as its authors normalise it. more: what else must be given.
    """

    address: str
    settings: Mapping[str, Any]
    licence: str
    gigabytes: float
    scale: str
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pickled: tuple[str, str, str] | None = None
    published: Mapping[str, tuple[float, ...]] | None = None
    more: str = ""

    @property
    def given(self) -> tuple[str, ...]:
        """The settings without which there is nothing to load."""
        return (*(self.pickled[2:] if self.pickled else ()), *(["template"] if self.more else ()))


PRESETS: dict[str, Preset] = {
    "clipscore": Preset(
        "genalign.reward.heads.clips:TransformersClip",
        {"model": CLIP_L, "scale": 100.0},
        *("MIT", 1.7, "100 cos, about 15 to 35"),
        files={CLIP_L: ("model.safetensors", *SEEN)},
    ),
    "pickscore": Preset(
        "genalign.reward.heads.clips:TransformersClip",
        {"model": "yuvalkirstain/PickScore_v1", "processor": CLIP_H, "scale": "logit"},
        *("MIT", 3.9, "exp(logit_scale) cos, about 18 to 24"),
        files={"yuvalkirstain/PickScore_v1": ("model.safetensors", "config.json"), CLIP_H: SEEN},
    ),
    "clip-delta": Preset(
        "genalign.reward.heads.clip_delta:ClipDelta",
        {"model": "yuvalkirstain/PickScore_v1", "processor": CLIP_H},
        *("MIT", 3.9, "about 0 of an unchanged clip, at most about 1"),
        files={"yuvalkirstain/PickScore_v1": ("model.safetensors", "config.json"), CLIP_H: SEEN},
    ),
    "hpsv2.1": Preset(
        "genalign.reward.heads.clips:OpenClipWeights",
        {"arch": "ViT-H-14", "file": "HPS_v2.1_compressed.safetensors", "resize_mode": "longest"},
        *("Apache-2.0", 2.0, "cos, about 0.2 to 0.35"),
        pickled=("xswu/HPSv2", "HPS_v2.1_compressed.pt", "model"),
    ),
    "hpsv2": Preset(
        "genalign.reward.heads.clips:OpenClipWeights",
        {"arch": "ViT-H-14", "file": "HPS_v2_compressed.safetensors", "resize_mode": "longest"},
        *("Apache-2.0", 2.0, "cos, about 0.2 to 0.35"),
        pickled=("xswu/HPSv2", "HPS_v2_compressed.pt", "model"),
    ),
    "aesthetic": Preset(
        "genalign.reward.heads.aesthetic:Aesthetic",
        {"model": CLIP_L},
        *("Apache-2.0 (head), MIT (CLIP)", 1.7, "1 to 10, mostly 4.5 to 7"),
        files={CLIP_L: ("model.safetensors", *SEEN)},
        pickled=(
            "github.com/christophschuhmann/improved-aesthetic-predictor",
            "sac+logos+ava1-l14-linearMSE.pth",
            "weights",
        ),
    ),
    "imagereward": Preset(
        "genalign.reward.heads.blip:ImageReward",
        {},
        *("Apache-2.0", 1.8, "about N(0,1)"),
        files={"google-bert/bert-base-uncased": WORDS},
        pickled=("THUDM/ImageReward", "ImageReward.pt", "model"),
    ),
    "clip-iqa": Preset(
        "genalign.reward.heads.clip_texts:ClipTexts",
        {"model": CLIP_L, "texts": ("Good photo.", "Bad photo.")},
        *("MIT", 1.7, "p(good photo), 0 to 1"),
        files={CLIP_L: ("model.safetensors", *SEEN)},
    ),
    "safe": Preset(
        "genalign.reward.heads.image_class:ImageClass",
        {"model": SAFE, "label": "normal"},
        *("Apache-2.0", 0.4, "p(safe to show at work), 0 to 1"),
        files={SAFE: ("model.safetensors", "config.json", "preprocessor_config.json")},
    ),
    "hpsv3": Preset(
        "genalign.reward.heads.hpsv3:HpsV3",
        {"model": "MizzenAI/HPSv3", "base": QWEN_7B},
        *("Apache-2.0", 16.6, "mu, about -5 to 15; std is sigma"),
        files={"MizzenAI/HPSv3": ("HPSv3.safetensors",), QWEN_7B: ("config.json", *WORDS)},
    ),
    "videoreward": Preset(
        "genalign.reward.heads.videoreward:VideoReward",
        {"base": QWEN_2B},
        *("MIT (code)", 5.0, "raw VQ, MQ and TA; calibrate: published normalises them"),
        files={QWEN_2B: ("config.json", *WORDS)},
        pickled=("KwaiVGI/VideoReward", "checkpoint-*/model.pth (with its model_config.json)", "model"),
        # as two independent ports of VideoAlign quote its model_config.json; the file itself was not read
        published={"mean": (3.6757, 1.1646, 2.8105), "std": (2.2476, 1.3811, 2.5121)},
        more="`template: prompt_template.py:DETAILED_PROMPT_WITH_SPECIAL_TOKEN`, from github.com/KwaiVGI/VideoAlign",
    ),
    "videoscore2": Preset(
        "genalign.reward.heads.videoscore:VideoScore2",
        {"model": VIDEOSCORE},
        *("Apache-2.0", 16.6, "VQ, TA and PC, each 1 to 5; the total is their mean"),
        files={VIDEOSCORE: (*(f"model-0000{k}-of-00004.safetensors" for k in range(1, 5)), *SEEN)},
    ),
    "raft": Preset(
        "genalign.reward.heads.raft:RaftSmoothness",
        {"size": "large"},
        *("BSD-3-Clause", 0.02, "smoothness of motion, 0 to 1"),
        pickled=("download.pytorch.org/models", "raft_large_C_T_SKHT_V2-ff5fadd5.pth", "weights"),
    ),
    "clap": Preset(
        "genalign.reward.heads.audio:Clap",
        {"model": CLAP},
        *("Apache-2.0", 0.8, "cos, about 0 to 0.6"),
        files={CLAP: ("model.safetensors", *SEEN)},
    ),
    "audiobox": Preset(
        "genalign.reward.heads.audio:Audiobox",
        {"model": "facebook/audiobox-aesthetics"},
        *("CC-BY-4.0", 0.4, "CE, CU, PC and PQ, each 1 to 10"),
        files={"facebook/audiobox-aesthetics": ("model.safetensors", "config.json")},
    ),
    "skywork": Preset(
        "genalign.reward.heads.classifier:Classifier",
        {"model": SKYWORK},
        *("see the card of the weights (Apache-2.0 or Llama, by the base)", 1.2, "a logit"),
        files={SKYWORK: ("model.safetensors", "config.json", *WORDS)},
    ),
}
for _name, _preset in PRESETS.items():  # what a log calls it, unless it is given a name
    PRESETS[_name] = replace(_preset, settings={"name": _name, **_preset.settings})

_warned: set[str] = set()


def warn_of_licence(name: str) -> None:
    """One line on the log, the first time that a process uses the preset."""
    if name not in _warned:
        _warned.add(name)
        logging.getLogger(__name__).warning("reward %s: weights under %s", name, PRESETS[name].licence)


def how_to_get(name: str) -> str:
    """What brings the preset's weights to this machine, in words."""
    preset = PRESETS[name]
    steps = [f"hf download {repo} {' '.join(files)}" for repo, files in preset.files.items()]
    if preset.pickled:
        repo, file, setting = preset.pickled
        at = f"from {repo}" if repo.startswith(("github.com", "download.pytorch.org")) else f"from hf download {repo}"
        converted = "converted to safetensors (name the file as it is, and genalign says how)"
        steps.append(f"{file} {at}, {converted}, and `{setting}: FOLDER` beside `use: {name}`")
    return "; ".join([*steps, *([preset.more] if preset.more else [])])


def absent_files(name: str) -> list[str]:
    """What of the preset's files is not in the hub's cache on this machine; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    absent = []
    for repo, files in PRESETS[name].files.items():
        for file in files:
            if not isinstance(try_to_load_from_cache(repo, file), str):  # None, or a marker of what is not on the hub
                absent.append(f"{repo}/{file}")
    return absent


def calibrated(head: Reward, name: str, calibrate: Any) -> Reward:
    """The head in other units. calibrate: {mean, std}, numbers or one an aspect; or "published", where there is such.

    Raises:
        UsageError: nothing published, another form, or a std that is not above 0.
    """
    published = PRESETS[name].published if name in PRESETS else None
    if calibrate == "published":
        if published is None:
            raise UsageError(f"no calibration of reward {name!r} is published; write calibrate: {{mean: M, std: S}}")
        calibrate = published
    if not isinstance(calibrate, Mapping) or set(calibrate) != {"mean", "std"}:
        raise UsageError(f"calibrate of reward {name!r} is {calibrate!r}; write {{mean: M, std: S}} or published")
    return Calibrated(head, calibrate["mean"], calibrate["std"])


class Calibrated(Wrapper):
    """values = (raw - mean) / std, an aspect at a time; the raw scores stay in info["raw"], a list a row.

    mean, std: a number, or one an aspect: measured on a set that you name, never a magic number of a scorer.

    Raises:
        UsageError: not numbers, another count of them, or a std that is not above 0.
    """

    def __init__(self, head: Reward, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__(head)
        try:
            self.mean = torch.tensor(mean, dtype=torch.float32).expand(len(head.aspects))  # (K,)
            self.std = torch.tensor(std, dtype=torch.float32).expand(len(head.aspects))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"mean {mean} and std {std} of reward {head.name!r} must be numbers, one or {len(head.aspects)}"
            ) from error
        if not bool((self.std > 0).all()):
            raise UsageError(f"std {std} of reward {head.name!r} must be above 0")

    @property
    def version(self) -> str:
        return digest("calibrated", self.reward.version, self.mean.tolist(), self.std.tolist())

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        return self.reward.prefetches(modalities) if isinstance(self.reward, ClipReward) else ()

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        raw = self.reward(prompts, media, group)
        values = torch.where(raw.valid, (raw.values - self.mean) / self.std, 0.0)
        return replace(
            raw,
            values=values,
            total=torch.where(raw.total_valid, values @ raw.weights.to(values), 0.0),
            std=None if raw.std is None else raw.std / self.std,
            info={**raw.info, "raw": raw.values.detach().tolist()},
        )
