"""tiny-clap: a ClapModel of MelodyWorld, which transformers and the `clap` reward load from its folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.lab.melody import KINDS, caption, change_one_fact, is_stated, sample_facts
from genalign.lab.melody_bank import RATE
from genalign.lab.melody_pieces import SAMPLES, arrange, render
from genalign.lab.music import stated
from genalign.lab.music_judge import shaken
from genalign.lab.music_reading import ANSWERS, TOKENS, answers, melody_tokenizer
from genalign.lab.reading import encoded_texts
from genalign.reward.heads.audio import Clap
from genalign.reward.heads.waves import log_mel
from genalign.training.fit import fit
from genalign.types import Media, Track

SIDE = 128  # of the picture that a sound is to the model: mel bands, and frames of 25 ms
SHARPER = 10.0  # what heads read are embeddings of length 1, times this
WIDTH = 128  # of the embedding, and of the text tower


def extractor() -> Any:
    """Mel bands so many, and windows so long, that tones a semitone apart stand in different bands from 350 Hz on."""
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(
        feature_size=SIDE,
        sampling_rate=RATE,
        hop_length=400,
        fft_window_size=2048,
        max_length_s=3,
        frequency_min=50,
        frequency_max=7600,
        truncation="rand_trunc",
        padding="repeatpad",
    )


def untrained(tokenizer: Any, seed: int = 41) -> Any:
    """A ClapModel: a Swin tower of three stages (32x32, 16x16 and 8x8 tokens), and a RoBERTa of three layers."""
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    audio = ClapAudioConfig(
        spec_size=SIDE,
        num_mel_bins=SIDE,
        patch_size=4,
        patch_stride=[4, 4],
        patch_embeds_hidden_size=32,
        hidden_size=128,
        depths=[1, 1, 2],
        num_attention_heads=[2, 4, 8],
        window_size=8,
        num_classes=1,
        projection_dim=WIDTH,
        attn_drop_rate=0.0,
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
    )
    text = ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=tokenizer.pad_token_id + TOKENS + 2,  # RoBERTa counts places from the padding token on
        type_vocab_size=1,
        projection_dim=WIDTH,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    return ClapModel(ClapConfig(audio_config=audio.to_dict(), text_config=text.to_dict(), projection_dim=WIDTH))


def build_clap(work: Path, steps: int = 2400, rows: int = 32, seed: int = 41) -> tuple[Any, Any]:
    """The model and its tokenizer: contrastive training on true captions of rendered pieces, shaken as a generator
    would; each sound also meets one caption with a changed fact (NegCLIP, Yuksekgonul et al. 2023, arXiv 2210.01936),
    since in-batch strangers never differ in the key alone. Beside it linear heads tell each fact from the embedding of
    a sound, and the same heads from that of a caption: by contrast alone, and AdamW, order and drums are not heard
    after 2,400 steps, with them and Muon after 500. Melody, key and tempo take longer."""
    tokenizer, made = melody_tokenizer(), extractor()
    model = untrained(tokenizer, seed)
    heads = nn.ModuleList([nn.Linear(WIDTH, count) for count in ANSWERS])
    filters = torch.from_numpy(made.mel_filters_slaney)
    early = (SAMPLES - made.nb_max_samples) // 2

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        waves, true, false, heard_facts, said_facts = [], [], [], [], []
        for _ in range(rows):
            facts = sample_facts(rng, "train")
            waves.append(shaken(render(arrange(facts, rng))[0], rng))
            said = stated(facts, rng)
            heard_facts.append(answers(facts))
            said_facts.append(answers(said))
            true.append(caption(said, rng))
            false.append(caption(change_one_fact(said, rng), rng))
        cut = torch.from_numpy(np.stack(waves))[:, early : early + made.nb_max_samples]
        frames = log_mel(cut, filters, made.fft_window_size, made.hop_length)[:, None]
        heard = model.get_audio_features(input_features=frames, is_longer=torch.zeros(rows, 1, dtype=torch.bool))
        encoded = encoded_texts(tokenizer, true + false, TOKENS)
        read = model.get_text_features(**encoded).pooler_output
        heard, read = F.normalize(heard.pooler_output, dim=-1), F.normalize(read, dim=-1)
        logits = model.logit_scale_a.exp().clamp(max=100) * heard @ read.T  # (rows, 2 rows): true, then changed ones
        target = torch.arange(rows)
        told = [
            F.cross_entropy(head(SHARPER * states), right)
            for states, facts in ((heard, heard_facts), (read[:rows], said_facts))
            for head, right in zip(heads, torch.tensor(facts).T, strict=True)
        ]
        own = torch.stack([logits.diagonal(), logits.diagonal(rows)], dim=1)  # (rows, 2): against its double
        return (
            F.cross_entropy(logits, target)
            + F.cross_entropy(logits[:, :rows].T, target)
            + F.cross_entropy(own, torch.zeros(rows, dtype=torch.long))
            + torch.stack(told).mean()
        )

    both = nn.ModuleDict({"clap": model.requires_grad_(True), "heads": heads})
    state = work / "clap.safetensors"
    fit(both, loss_of, steps=steps, learning_rate=1e-3, muon=0.02, state=state, weight_decay=0.05)
    return model.requires_grad_(False), tokenizer


def save_clap(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the folder that ClapModel, ClapFeatureExtractor and AutoTokenizer load, in fp16."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    extractor().save_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()  # else ClapProcessor would cut sounds to as many samples
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def clap_accuracy(folder: Path, count: int = 500, seed: int = 42) -> dict[str, float]:
    """By kind of fact, the share of held-out pieces whose true caption scores above the same with this fact changed."""
    clap, rng, shares = Clap(folder), np.random.default_rng(seed), {}
    facts = [sample_facts(rng, "heldout") for _ in range(count)]
    waves = torch.from_numpy(np.stack([render(arrange(each, rng)) for each in facts]))
    with torch.no_grad():
        heard = F.normalize(clap.hear(Media(audio=Track(waves, RATE))), dim=1)
        true = F.normalize(clap.read([caption(each, rng) for each in facts]), dim=1)
        for kind in KINDS:
            rows = [k for k, each in enumerate(facts) if is_stated(kind, each)]
            wrong = [caption(change_one_fact(facts[k], rng, (kind,)), rng) for k in rows]
            false = F.normalize(clap.read(wrong), dim=1)
            better = (heard[rows] * true[rows]).sum(1) > (heard[rows] * false).sum(1)
            shares[kind] = float(better.float().mean())
    return shares


def clap_card(folder: Path) -> str:
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in clap_accuracy(folder).items())
    return f"""A ClapModel (a Swin tower over 128 mel bands and 3 s at 16 kHz, a RoBERTa of three layers, embeddings of
128): how well a sound suits its prompt, a possible training reward. The instruments are of the sound font FluidR3
(MIT), the melodies in the public domain.

Trained contrastively on rendered pieces of the training split with true captions, each sound also against its caption
with one fact changed. Of 500 held-out pieces it prefers the true caption to the same with one fact changed, by kind of
fact, in: {shares}.

```yaml
reward: {{use: clap, model: tiny-clap}}
```

Made by `genalign lab build clap`."""
