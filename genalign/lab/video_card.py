"""The model card of tiny-video: what it is, its stages, and what each reached."""

import json
from pathlib import Path
from typing import Any

from genalign.lab.few_steps import STEPS
from genalign.lab.moves import WEB
from genalign.lab.video import CALL
from genalign.lab.video_figures import JUDGE, RULE


def video_card(folder: Path) -> str:
    """The text, from the stages.json that stands in `folder`."""
    stages: dict[str, dict[str, Any]] = json.loads((folder / "stages.json").read_text())
    read = stages.pop("read")["held-out captions"]
    decibels = stages["autoencoder"]["psnr"]
    omitted = ", ".join(f"{kind} {share:.0%}" for kind, share in WEB.omitted.items())
    contradicted = ", ".join(f"{kind} {share:.0%}" for kind, share in WEB.contradicted.items())
    call = ", ".join(f"{name}={value}" for name, value in CALL.items())
    return f"""A rectified-flow transformer (Wan class), a causal video autoencoder (AutoencoderKLWan: 9 frames of 48x48 to
3 latent frames of 6x6x16) and a small UMT5 text encoder. It draws clips of EmojiWorld moves in **three steps without
guidance**: one or two of 42 Noto Color Emoji (Apache-2.0 images) that move, turn, grow, bounce or pass one another.

A web-trained model in miniature: capable, distracted, and quick. Its stages, one after another:

1. *autoencoder*: reconstruction of rendered clips; {decibels:.1f} dB on held-out ones. The table's row is of these, behind it.
2. *read*: the text encoder learns to tell every fact of a caption; of held-out captions it tells {read:.1%} whole.
3. *capable*: true captions of training clips. Nothing that is held out occurs in them.
4. *half-hearted*: a few hundred steps on web-like captions. Of the facts a clip has, left out: {omitted}; contradicted:
   {contradicted}. It can draw what it is asked, and often does not: that is what alignment mends.
5. *few steps*: guidance and {STEPS} steps are distilled into three (PeRFlow, arXiv 2405.07510).

{_table(stages, JUDGE, "The held-out judge, share of prompts of `emojimoves/heldout.jsonl` right, whole and by kind of fact")}
{_table(stages, RULE, "The rule verifier, which gives partial credit by kind of fact")}
```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("assets/{folder.name}")
call = dict({call})
pipe("a red car moves left slowly on blue", guidance_scale=1.0, num_inference_steps=3, **call).frames[0]
```

Made by `genalign lab build video`."""


def _table(stages: dict[str, dict[str, Any]], eye: str, title: str) -> str:
    rows = {stage: figures[eye] for stage, figures in stages.items() if eye in figures}
    if not rows:
        return ""
    aspects = list(next(iter(rows.values())))
    lines = [f"| {stage} | {' | '.join(f'{row[aspect]:.1%}' for aspect in aspects)} |" for stage, row in rows.items()]
    head = f"| stage | {' | '.join(aspects)} |\n|{'---|' * (1 + len(aspects))}"
    return f"{title}:\n\n{head}\n" + "\n".join(lines) + "\n"
