"""The model cards of tiny-music, with its stages and what each reached, and of its judge."""

import json
from pathlib import Path
from typing import Any

from genalign.lab.few_steps import STEPS
from genalign.lab.melody import WEB
from genalign.lab.music import CALL, LATENTS
from genalign.lab.music_figures import SHEET, melody_prompts
from genalign.lab.music_judge import judge_accuracy
from genalign.lab.video_card import stage_table
from genalign.lab.video_figures import JUDGE, RULE


def music_card(folder: Path) -> str:
    """The text, from the stages.json that stands in `folder`."""
    stages: dict[str, dict[str, Any]] = json.loads((folder / "stages.json").read_text())
    read = stages.pop("read")["held-out captions"]
    omitted = ", ".join(f"{kind} {share:.0%}" for kind, share in WEB.omitted.items())
    contradicted = ", ".join(f"{kind} {share:.0%}" for kind, share in WEB.contradicted.items())
    sounds = "\n".join(f"{k}. [{prompt.text}](played-{k}.ogg)" for k, prompt in enumerate(melody_prompts(8), 1))
    call = ", ".join(f"{name}={value}" for name, value in CALL.items())
    return f"""A rectified-flow transformer (LongCat class), a waveform autoencoder (LongCatAudioDiTVae: 24576
samples at 8 kHz to {LATENTS[0]} latents of {LATENTS[1]}) and a small UMT5 text encoder. It plays 3 s of one
of 48 public-domain melodies
in **three steps without guidance**, by eight instruments of the sound font FluidR3 (MIT), with or without an
accompaniment and drums.

A web-trained model in miniature: capable, distracted, and quick. Its stages, one after another:

1. *autoencoder*: worked out from rendered pieces, the principal components of a lapped transform; held-out pieces
   behind it are the first rows below.
2. *read*: the text encoder learns to tell every fact of a caption; of held-out captions it tells {read:.1%} whole.
3. *capable*: true captions of training pieces. Nothing that is held out occurs in them.
4. *half-hearted*: a few hundred steps on web-like captions. Of the facts a piece has, left out: {omitted};
   contradicted: {contradicted}. It can play what it is asked, and often does not: that is what alignment mends.
5. *few steps*: guidance and {STEPS} steps are distilled into three (PeRFlow, arXiv 2405.07510).

{stage_table(stages, JUDGE, "Held-out judge, share of prompts of `melodyworld/heldout.jsonl` right, by kind of fact")}
{stage_table(stages, RULE, "Rule verifier, with partial credit by kind of fact")}
```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("assets/tiny-music")
wave = pipe("a flute plays Frere Jacques in D major, fast", guidance_scale=1.0, num_inference_steps=3, {call}).audios[0]
```

The first eight held-out prompts, played so:

![Spectrograms of eight sounds]({SHEET})

{sounds}

Made by `genalign lab build music`."""


def judge_card(folder: Path) -> str:
    right, by_kind = judge_accuracy(folder)
    kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in by_kind.items())
    return f"""The held-out judge of MelodyWorld: convolutions over a spectrogram in thirds of semitones, which tell who
plays which melody in which key, and how. **Never use it as a training reward.** The instruments are of the sound font
FluidR3 (MIT), the melodies in the public domain.

Trained on rendered pieces and true facts only, never on generated sounds or the rule verifier's output; augmented by
gain, tilt, cut-off, noise and shift. Of 500 clean held-out pieces it hears {right:.1%} wholly right, and it rejects of
captions with one fact changed, by kind of fact: {kinds}.

Made by `genalign lab build music-judge`."""
