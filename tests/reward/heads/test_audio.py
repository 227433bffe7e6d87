"""CLAP and Audiobox aesthetics on tiny models, against official extractors and formulas written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    ClapFeatureExtractor,
    ClapModel,
    WavLMConfig,
    WavLMModel,
)

from genalign.reward import build_reward
from genalign.reward.heads.audio import AudioboxHeads, published_names
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.tiny_heads import AUDIOBOX, WAVLM, randomise, save_state, tiny_clap, tiny_classifier, write_json
from tests.helpers.toy_rewards import prompts, texts


def tones(rows: int, samples: int, rate: int, seed: int = 0) -> Tensor:
    """(rows, samples): chords with noise, within [-1,1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    chords = [sum(np.sin(2 * np.pi * f * time) for f in rng.uniform(100, rate / 4, size=3)) / 4 for _ in range(rows)]
    return torch.from_numpy(np.stack(chords) + 0.05 * rng.standard_normal((rows, samples))).float().clamp(-1, 1)


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clap(tmp_path_factory.mktemp("clap") / "clap")


@pytest.mark.parametrize("samples", [8000, 3000, 7999, 500])
def test_clap_frames_are_the_official_extractors(clap_folder: Path, samples: int) -> None:
    waves = tones(2, samples, 8000)
    reward = build_reward({"use": "clap", "model": str(clap_folder)}, Path())
    got = reward.frames(list(waves))  # type: ignore[attr-defined]
    extractor = ClapFeatureExtractor.from_pretrained(clap_folder)
    official = extractor([w.numpy() for w in waves], sampling_rate=8000, return_tensors="pt").input_features
    assert got.shape == official.shape
    assert (got - official).abs().max() < 0.02  # decibels
    assert official.std() > 5


def test_clap_is_the_cosine_of_the_two_towers(clap_folder: Path) -> None:
    net, extractor = ClapModel.from_pretrained(clap_folder).eval(), ClapFeatureExtractor.from_pretrained(clap_folder)
    tokenizer = AutoTokenizer.from_pretrained(clap_folder)
    waves, asked = tones(3, 6000, 8000), [Prompt("a cat"), Prompt("two stars and the cat"), Prompt("number 3")]
    expected = []
    for wave, prompt in zip(waves, asked, strict=True):
        frames = extractor(wave.numpy(), sampling_rate=8000, return_tensors="pt").input_features
        with torch.no_grad():
            heard = net.get_audio_features(input_features=frames, is_longer=torch.tensor([[False]])).pooler_output
            read = net.get_text_features(**tokenizer(prompt.text, return_tensors="pt")).pooler_output
        expected.append(F.cosine_similarity(heard, read).item())
    reward = build_reward({"use": "clap", "model": str(clap_folder), "batch_size": 2}, Path())
    got = reward(asked, Media(audio=Track(waves[:, None], rate=8000)))
    assert np.std(expected) > 1e-3
    assert got.total.tolist() == pytest.approx(expected, abs=1e-4)
    uneven = Media(audio=Track([waves[0][None], waves[1][None], waves[2][None]], rate=8000))
    assert torch.allclose(reward(asked, uneven).total, got.total, atol=1e-6)


def test_clap_hears_the_middle_of_what_is_too_long_every_time(clap_folder: Path) -> None:
    """Invariant 6."""
    reward = build_reward({"use": "clap", "model": str(clap_folder)}, Path())
    wave = tones(1, 12000, 8000)
    whole = reward([Prompt("a cat")], Media(audio=Track(wave[None], rate=8000))).total
    middle = reward([Prompt("a cat")], Media(audio=Track(wave[None, :, 2000:10000], rate=8000))).total
    assert torch.equal(whole, middle)


def test_gradients_reach_the_samples(clap_folder: Path, tmp_path: Path) -> None:
    clap = build_reward({"use": "clap", "model": str(clap_folder)}, Path())
    box = build_reward({"use": "audiobox", "model": str(audiobox_folder(tmp_path)), "encoder": WAVLM}, Path())
    for reward, rate in ((clap, 8000), (box, 8000)):
        wave = tones(1, 8000, 8000)[None].requires_grad_()
        reward([Prompt("a cat")], Media(audio=Track(wave, rate=rate))).total.sum().backward()
        assert wave.grad is not None
        assert wave.grad.abs().sum() > 0


ORIGINAL = (  # transformers' WavLM -> the names of facebook/audiobox-aesthetics, written down apart from the library
    ("feature_extractor.conv_layers.0.layer_norm.", "feature_extractor.conv_layers.0.2."),
    (".conv.weight", ".0.weight"),
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    ("masked_spec_embed", "mask_emb"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
    ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    (".attention.gru_rel_pos_linear.", ".self_attn.grep_linear."),
    (".attention.gru_rel_pos_const", ".self_attn.grep_a"),
    (".attention.rel_attn_embed.", ".self_attn.relative_attention_bias."),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
)


def original_name(key: str) -> str:
    if key.startswith("encoder.layers.") and ".layer_norm." in key and "final" not in key:
        return f"wavlm_model.{key.replace('.layer_norm.', '.self_attn_layer_norm.')}"
    for old, new in ORIGINAL:
        if old in key and not (old == ".conv.weight" and "pos_conv" in key):
            return f"wavlm_model.{key.replace(old, new)}"
    return f"wavlm_model.{key}"


def audiobox_state() -> dict[str, Tensor]:
    config = WavLMConfig(num_buckets=320, max_bucket_distance=800, **WAVLM)
    wavlm = randomise(WavLMModel(config), 0.3)
    state = {original_name(key): value for key, value in wavlm.state_dict().items()}
    rng = torch.Generator().manual_seed(1)
    for axis in ("CE", "CU", "PC", "PQ"):
        state[f"layer_weights.{axis}"] = torch.randn(3, generator=rng)
        shapes = {"0.weight": (24, 24), "0.bias": (24,), "1.weight": (24,), "1.bias": (24,)}
        for part, shape in {**shapes, "3.weight": (1, 24), "3.bias": (1,)}.items():
            state[f"proj_layer.{axis}.{part}"] = torch.randn(shape, generator=rng)
    return state


def audiobox_folder(folder: Path) -> Path:
    write_json(AUDIOBOX, folder / "box" / "config.json")
    save_state(audiobox_state(), folder / "box" / "model.safetensors")
    return folder / "box"


def test_audiobox_is_a_length_weighted_mean_of_windows_written_out(tmp_path: Path) -> None:
    """audiobox_aesthetics/model/aes.py and infer.py: 10 s windows, weighted layers, no padding, MLP, units."""
    state = audiobox_state()
    reward = build_reward({"use": "audiobox", "model": str(audiobox_folder(tmp_path)), "encoder": WAVLM}, Path())
    wave = tones(1, 16000 * 13, 16000)[0]
    got = reward([Prompt("")], Media(audio=Track(wave[None, None], rate=16000)))
    wavlm = WavLMModel(WavLMConfig(num_buckets=320, max_bucket_distance=800, **WAVLM)).eval()
    wavlm.load_state_dict({key: state[original_name(key)] for key in wavlm.state_dict()})
    sums = torch.zeros(4)
    for start, seconds in ((0, 10), (10, 3)):
        piece = F.pad(wave[start * 16000 : (start + seconds) * 16000], (0, (10 - seconds) * 16000))
        frames = 499  # of 160000 samples, by the strides of the convolutions
        span = 160000 // frames
        there = torch.tensor([t * span < seconds * 16000 for t in range(frames)])  # a frame with any sample is heard
        sample_mask = torch.arange(160000) < seconds * 16000
        with torch.no_grad():
            if bool(sample_mask.all()):
                layers = wavlm(piece[None], output_hidden_states=True).hidden_states
            else:
                wavlm._get_feature_vector_attention_mask = lambda *_, there=there, **__: there[None]  # type: ignore[assignment]
                layers = wavlm(
                    piece[None], attention_mask=sample_mask[None].long(), output_hidden_states=True
                ).hidden_states
        assert len(layers) == 3
        for k, axis in enumerate(("CE", "CU", "PC", "PQ")):
            share = state[f"layer_weights.{axis}"].softmax(0)
            mixed = sum(share[j] * layers[j][0] for j in range(3))
            mean = F.normalize(mixed[there].mean(0), dim=0)
            at = f"proj_layer.{axis}."
            h = F.linear(mean, state[f"{at}0.weight"], state[f"{at}0.bias"])
            h = F.gelu(F.layer_norm(h, (24,), state[f"{at}1.weight"], state[f"{at}1.bias"]))
            score = F.linear(h, state[f"{at}3.weight"], state[f"{at}3.bias"]).item()
            unit = AUDIOBOX["target_transform"][axis]
            sums[k] += seconds * (score * unit["std"] + unit["mean"])
    assert torch.allclose(got.values[0], sums / 13, atol=1e-3)
    assert got.names == ("CE", "CU", "PC", "PQ")


def test_audiobox_has_the_published_names_and_shapes() -> None:
    """WavLM base under its original names (audiobox_aesthetics 0.0.4, model/wavlm.py), four heads of one layer."""
    with torch.device("meta"):
        net = AudioboxHeads({**AUDIOBOX, "proj_num_layer": 1, "nth_layer": 13})
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    published = {
        "wavlm_model.mask_emb": (768,),
        "wavlm_model.feature_extractor.conv_layers.0.0.weight": (512, 1, 10),
        "wavlm_model.feature_extractor.conv_layers.0.2.weight": (512,),
        "wavlm_model.feature_extractor.conv_layers.6.0.weight": (512, 512, 2),
        "wavlm_model.post_extract_proj.weight": (768, 512),
        "wavlm_model.layer_norm.weight": (512,),
        "wavlm_model.encoder.pos_conv.0.weight_g": (1, 1, 128),
        "wavlm_model.encoder.pos_conv.0.weight_v": (768, 48, 128),
        "wavlm_model.encoder.layers.0.self_attn.relative_attention_bias.weight": (320, 12),
        "wavlm_model.encoder.layers.11.self_attn.grep_linear.weight": (8, 64),
        "wavlm_model.encoder.layers.11.self_attn.grep_a": (1, 12, 1, 1),
        "wavlm_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        "wavlm_model.encoder.layers.11.self_attn_layer_norm.weight": (768,),
        "wavlm_model.encoder.layers.11.fc1.weight": (3072, 768),
        "wavlm_model.encoder.layers.11.fc2.bias": (768,),
        "wavlm_model.encoder.layers.11.final_layer_norm.bias": (768,),
        "wavlm_model.encoder.layer_norm.weight": (768,),
        "layer_weights.CE": (13,),
        "proj_layer.PQ.0.weight": (1, 768),
    }
    for key, shape in published.items():
        assert shapes[published_names(key)] == shape, key


def test_audiobox_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    spec = {"use": "audiobox", "model": str(audiobox_folder(tmp_path)), "encoder": WAVLM}
    waves = [tones(1, 5000, 16000)[0], tones(1, 12000, 16000, seed=4)[0]]
    media = Media(audio=Track([wave[None] for wave in waves], rate=16000))
    one, many = (build_reward({**spec, "batch_size": size}, Path())(prompts(2), media) for size in (1, 8))
    assert torch.allclose(one.values, many.values, atol=1e-4)
    assert (one.values[0] - one.values[1]).abs().max() > 1e-3


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tiny_classifier(tmp_path / "rm")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=40, num_labels=2, **size)).save_pretrained(folder)
    with pytest.raises(UsageError, match="2 labels"):
        build_reward({"use": "skywork", "model": str(folder)}, Path())(prompts(1), texts("a"))
    box = audiobox_folder(tmp_path)
    write_json({"proj_ln": True}, box / "config.json")
    with pytest.raises(UsageError, match="not a configuration of Audiobox"):
        build_reward({"use": "audiobox", "model": str(box), "encoder": WAVLM}, Path())(
            prompts(1), Media(audio=Track(tones(1, 8000, 16000)[None], rate=16000))
        )
