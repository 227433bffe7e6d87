"""Rewards of audio: CLAP (does it fit its prompt) and Audiobox aesthetics (how good is it, on four axes)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.reward.base import Stateless, cut_info, digest, texts, weights_digest
from genalign.reward.heads.text_features import context, too_long
from genalign.reward.heads.waves import log_mel, mono_waves
from genalign.reward.heads.weights import find_weights, fit, from_hub, read_weights, renamed, weights_file
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores, UsageError


class Clap(Stateless):
    """score = cos(audio, prompt) by transformers' ClapModel, about 0 to 0.6 (LAION-CLAP, arXiv 2211.06687).

    model: a folder or hub id, without feature fusion: laion/larger_clap_general, or larger_clap_music converted to
    safetensors. Audio is made mono and resampled; what is shorter than 10 s repeats, what is longer is cut to its
    middle. Gradients flow to the samples.

    Departs from the official code: it cuts long audio at random, and rounds samples to 16 bits (laion_clap alone).

    Raises:
        UsageError: no such model, or one that fuses or pads its audio in another way; audio without a sample rate.
    """

    needs = frozenset({"audio", "prompt"})
    looks_at = "sample"
    differentiable = True

    def __init__(self, model: str | Path, *, batch_size: int = 16, name: str = "clap") -> None:
        self.model = find_weights(model, Path())
        self.batch_size, self.name, self.aspects = batch_size, name, (name,)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        net, extractor = from_hub(ClapModel, self.model), from_hub(ClapFeatureExtractor, self.model)
        if net.config.audio_config.enable_fusion or extractor.padding != "repeatpad":
            raise UsageError(
                f"{self.model} fuses or pads its audio in a way genalign lacks; take laion/larger_clap_general"
            )
        return net, extractor, from_hub(AutoTokenizer, self.model)

    @property
    def version(self) -> str:
        return digest("clap", self.name, weights_digest(self._loaded[0]))

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        net, _, tokenizer = self._loaded
        heard = self.hear(media)
        cosine = F.cosine_similarity(heard, self.read(texts(prompts), heard.device), dim=1)
        cut = cut_info(self.name, too_long(tokenizer, texts(prompts), context(net.text_model, tokenizer)))
        return all_valid(self.aspects, cosine[:, None].cpu(), info=cut)

    def hear(self, media: Media) -> Tensor:
        """Sound features (B,E) of any length, with gradients, on the sounds' device."""
        net, extractor, _ = self._loaded
        waves = mono_waves(media, extractor.sampling_rate, self.name)
        net.to(waves[0].device)
        frames = self.frames(waves)  # (B,1,T,mels)
        features = []
        with torch.autocast(frames.device.type, enabled=False):
            for part in frames.split(self.batch_size):
                longer = torch.zeros(len(part), 1, dtype=torch.bool, device=part.device)
                features.append(net.get_audio_features(input_features=part, is_longer=longer).pooler_output)
        return torch.cat(features)

    def read(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Text features (B,E) of any length."""
        net, _, tokenizer = self._loaded
        net.to(device)
        longest, features = context(net.text_model, tokenizer), []
        with torch.autocast(torch.device(device).type, enabled=False):
            for at in range(0, len(prompts), self.batch_size):
                part = list(prompts[at : at + self.batch_size])
                tokens = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
                features.append(net.get_text_features(**tokens.to(device)).pooler_output)
        return torch.cat(features)

    def frames(self, waves: Sequence[Tensor]) -> Tensor:
        """Waves (N,) at the model's rate -> log-mel frames (B,1,T,mels), as ClapFeatureExtractor makes them."""
        extractor = self._loaded[1]
        most = int(extractor.nb_max_samples)
        cut = []
        for wave in waves:
            start = max(0, (len(wave) - most) // 2)
            wave = wave[start : start + most]
            wave = wave.repeat(max(1, most // len(wave)))
            cut.append(F.pad(wave, (0, most - len(wave))))
        filters = torch.from_numpy(extractor.mel_filters_slaney)
        return log_mel(torch.stack(cut), filters, extractor.fft_window_size, extractor.hop_length)[:, None]


AXES = ("CE", "CU", "PC", "PQ")
SECONDS, RATE = 10, 16000
DEFAULTS = {  # of what config.json may leave out
    "proj_num_layer": 1,
    "proj_ln": False,
    "nth_layer": 13,
    "use_weighted_layer_sum": True,
    "normalize_embed": True,
}


class AudioboxHeads(nn.Module):
    """WavLM, and for each axis a weighted mean over its layers, a mean over time, and an MLP.

    settings: the checkpoint's config.json (proj_num_layer, proj_ln, nth_layer, use_weighted_layer_sum,
    normalize_embed, target_transform). encoder: arguments of WavLMConfig; those of WavLM base are the defaults.
    """

    def __init__(self, settings: Mapping[str, Any], encoder: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        from transformers import WavLMConfig, WavLMModel

        config = WavLMConfig(**{"num_buckets": 320, "max_bucket_distance": 800, **(encoder or {})})
        self.settings = settings
        self.wavlm: Any = WavLMModel(config)
        width, layers = config.hidden_size, int(settings["proj_num_layer"])
        self.proj_layer = nn.ModuleDict({axis: _mlp(width, layers, bool(settings["proj_ln"])) for axis in AXES})
        if settings["use_weighted_layer_sum"]:
            weights = {axis: nn.Parameter(torch.zeros(int(settings["nth_layer"]))) for axis in AXES}
            self.layer_weights = nn.ParameterDict(weights)

    def forward(self, waves: Tensor, mask: Tensor) -> Tensor:
        """Waves (B,N), and where they are not padding (B,N) -> scores (B,4) in the units of the ratings, 1 to 10."""
        layers, there = self.layers(waves, mask)  # (L,B,T,H), (B,T)
        there = there[..., None].to(layers)
        scores = []
        for axis in AXES:
            hidden = layers[-1]
            if self.settings["use_weighted_layer_sum"]:
                hidden = torch.einsum("lbth,l->bth", layers, self.layer_weights[axis].softmax(0))
            embedded = (hidden * there).sum(1) / there.sum(1).clamp(min=1)  # (B,H) the mean over what is not padding
            embedded = F.normalize(embedded, dim=1) if self.settings["normalize_embed"] else embedded
            unit = self.settings["target_transform"][axis]
            scores.append(self.proj_layer[axis](embedded)[:, 0] * unit["std"] + unit["mean"])
        return torch.stack(scores, dim=1)

    def layers(self, waves: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What WavLM's encoder reads and each of its layers, (L,B,T,H); and which frames hold any audio, (B,T)."""
        features = self.wavlm.feature_extractor(waves).transpose(1, 2)
        frames = features.shape[1]
        span = mask.shape[1] // frames
        there = mask[:, : span * frames].reshape(len(mask), frames, span).any(-1)
        hidden = self.wavlm.feature_projection(features)[0] * there[..., None]
        encoder = self.wavlm.encoder
        hidden = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
        kept, bias = [hidden], None
        for at, layer in enumerate(encoder.layers):
            hidden, bias = layer(hidden, attention_mask=there, position_bias=bias, index=at)
            kept.append(hidden)
        return torch.stack(kept), there


class Audiobox(Stateless):
    """Content enjoyment, content usefulness, production complexity and production quality, each 1 to 10.

    Audiobox aesthetics (arXiv 2502.05139, section 4). model: a folder or hub id with config.json and model.safetensors.
    Audio is made mono, resampled to 16 kHz and scored in windows of 10 s, whose scores are averaged by their length.
    Gradients flow to the samples. encoder: arguments of WavLMConfig, for a checkpoint of another size.

    Raises:
        UsageError: no such model, a config.json of another form, or audio without a sample rate.
    """

    needs = frozenset({"audio"})
    looks_at = "sample"
    differentiable = True
    aspects = AXES

    def __init__(
        self,
        model: str | Path,
        *,
        encoder: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        name: str = "audiobox",
    ) -> None:
        self.model, self.encoder, self.batch_size, self.name = find_weights(model, Path()), encoder, batch_size, name

    @cached_property
    def _loaded(self) -> AudioboxHeads:
        path = weights_file(self.model, "model.safetensors")
        settings = weights_file(self.model, "config.json")
        try:
            config = {**DEFAULTS, **json.loads(settings.read_text(encoding="utf-8"))}
            units = {}
            for axis in AXES:
                unit = config["target_transform"][axis]
                units[axis] = {"mean": float(unit["mean"]), "std": float(unit["std"])}
            net = AudioboxHeads({**config, "target_transform": units}, self.encoder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{settings} is not a configuration of Audiobox aesthetics: {error!r}") from error
        fit(net, renamed(read_weights(path), published_names), path)
        return net.float()

    @property
    def version(self) -> str:
        return digest("audiobox", self.name, weights_digest(self._loaded), dict(self._loaded.settings))

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        net = self._loaded
        waves = mono_waves(media, RATE, self.name)
        net.to(waves[0].device)
        pieces: list[tuple[int, Tensor]] = []  # (row, window) of every window of every row
        for row, wave in enumerate(waves):
            pieces += [(row, window) for window in wave.split(SECONDS * RATE)]
        values = torch.zeros(len(waves), len(AXES), device=waves[0].device)
        for at in range(0, len(pieces), self.batch_size):
            part = pieces[at : at + self.batch_size]
            lengths = torch.tensor([len(piece) for _, piece in part], device=values.device)
            padded = torch.stack([F.pad(piece, (0, SECONDS * RATE - len(piece))) for _, piece in part])
            mask = torch.arange(padded.shape[1], device=values.device) < lengths[:, None]
            share = torch.tensor([len(piece) / len(waves[row]) for row, piece in part], device=values.device)
            with torch.autocast(values.device.type, enabled=False):
                weighted = net(padded, mask) * share[:, None]
            values = values.index_add(0, torch.tensor([row for row, _ in part], device=values.device), weighted)
        return all_valid(self.aspects, values.cpu())


def _mlp(width: int, layers: int, norm: bool) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(width, width), *([nn.LayerNorm(width)] if norm else []), nn.GELU()]
    return nn.Sequential(*modules, nn.Linear(width, 1))


WAVLM = (  # the original WavLM's names -> transformers'
    (r"^wavlm_model\.", "wavlm."),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^wavlm\.layer_norm\.", "wavlm.feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"^wavlm\.mask_emb$", "wavlm.masked_spec_embed"),
    (r"encoder\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.bias", "encoder.pos_conv_embed.conv.bias"),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


def published_names(key: str) -> str:
    """A key of facebook/audiobox-aesthetics in AudioboxHeads' names."""
    for old, new in WAVLM:
        key = re.sub(old, new, key)
    return key
