"""The model cards of tiny-video, with its stages and what each reached, and of its judge."""

import json
from pathlib import Path
from typing import Any

from genalign.lab.few_steps import STEPS
from genalign.lab.moves import WEB
from genalign.lab.moves_judge import judge_accuracy
from genalign.lab.video import CALL
from genalign.lab.video_figures import JUDGE, RULE, SHEET


def video_card(folder: Path) -> str:
    """The text, from the stages.json that stands in `folder`."""
    stages: dict[str, dict[str, Any]] = json.loads((folder / "stages.json").read_text())
    read = stages.pop("read")["held-out captions"]
    decibels = stages["autoencoder"]["psnr"]
    omitted = ", ".join(f"{kind} {share:.0%}" for kind, share in WEB.omitted.items())
    contradicted = ", ".join(f"{kind} {share:.0%}" for kind, share in WEB.contradicted.items())
    call = ", ".join(f"{name}={value}" for name, value in CALL.items())
    return f"""A rectified-flow transformer (Wan class), a causal video autoencoder (AutoencoderKLWan: 9 frames of 48x48
to 3 latent frames of 6x6x32) and a small UMT5 text encoder. It draws clips of EmojiWorld moves in **three steps without
guidance**: one or two of 42 Noto Color Emoji (Apache-2.0 images) that move, turn, grow, bounce or pass one another.

A web-trained model in miniature: capable, distracted, and quick. Its stages, one after another:

1. *autoencoder*: reconstruction of rendered clips; {decibels:.1f} dB on held-out ones, which are its rows below.
2. *read*: the text encoder learns to tell every fact of a caption; of held-out captions it tells {read:.1%} whole.
3. *capable*: true captions of training clips. Nothing that is held out occurs in them.
4. *half-hearted*: a few hundred steps on web-like captions. Of the facts a clip has, left out: {omitted}; contradicted:
   {contradicted}. It can draw what it is asked, and often does not: that is what alignment mends.
5. *few steps*: guidance and {STEPS} steps are distilled into three (PeRFlow, arXiv 2405.07510).

{stage_table(stages, JUDGE, "Held-out judge, share of prompts of `emojimoves/heldout.jsonl` right, by kind of fact")}
{stage_table(stages, RULE, "Rule verifier, with partial credit by kind of fact")}
![The first eight held-out prompts, a row each]({SHEET})

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("assets/tiny-video")
call = dict({call})
pipe("a red car moves left slowly on blue", guidance_scale=1.0, num_inference_steps=3, **call).frames[0]
```

Made by `genalign lab build video`."""


def judge_card(folder: Path) -> str:
    right, by_kind = judge_accuracy(folder)
    kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in by_kind.items())
    return f"""The held-out judge of EmojiWorld moves: a network over nine frames of 48x48 that marks each object's
centre in every frame and reads from what stands there over time how it moves. **Never use it as a training reward.**
The sprites are 42 Noto Color Emoji (Apache-2.0 images).

Trained on rendered clips and true facts only, never on generated clips or the rule verifier's output; augmented by
gain, offset, blur and noise. Of 500 clean held-out clips it finds {right:.1%} wholly right, and it rejects of captions
with one fact changed, by kind of fact: {kinds}.

Made by `genalign lab build video-judge`."""


def stage_table(stages: dict[str, dict[str, Any]], eye: str, title: str) -> str:
    rows = {stage: figures[eye] for stage, figures in stages.items() if eye in figures}
    if not rows:
        return ""
    aspects = list(next(iter(rows.values())))
    lines = [f"| {stage} | {' | '.join(f'{row[aspect]:.1%}' for aspect in aspects)} |" for stage, row in rows.items()]
    head = f"| stage | {' | '.join(aspects)} |\n|{'---|' * (1 + len(aspects))}"
    return f"{title}:\n\n{head}\n" + "\n".join(lines) + "\n"
