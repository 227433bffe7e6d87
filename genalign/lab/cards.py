"""Model cards of the shipped models: what each is, and its measured accuracies, written when it is built."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genalign.files.shipped import shipped
from genalign.lab.drawn import base_sweep, draw, heldout_prompts, judge_accuracy
from genalign.lab.judge import Judge
from genalign.lab.verifier import verify_batch
from genalign.lab.world import DISTRACTED, Shares
from genalign.types import Media, Track

TEACHER_STEPS = 9  # of the model that tiny-flow's three steps are distilled from
_HEAD = "---\nlicense: apache-2.0\ntags: [genalign, {world}, {tag}]\n---\n\n# {title}\n\n{text}\n"
_WORLD = (
    "EmojiWorld is a world of 64x64 scenes of 42 Noto Color Emoji (Apache-2.0 images); captions name objects, counts, "
    "one relation and a background, and every fact can be checked."
)


def shares_of(shares: Shares) -> str:
    return ", ".join(
        f"{kind} omitted {omitted:.0%}, contradicted {shares.contradicted[kind]:.0%}"
        for kind, omitted in shares.omitted.items()
    )


def _sd_card(folder: Path) -> str:
    sweep, agreement = base_sweep(folder)
    row = " | ".join(f"{value:.1%}" for value in sweep.values())
    text = f"""A v-prediction UNet with a DDIM scheduler, the autoencoder of tiny-flow and two of the three layers of
its text tower. {_WORLD}

Fitted to 24,576 pictures that tiny-flow drew in its three steps on true captions of training scenes: it follows as
half-heartedly as tiny-flow does, which is what alignment mends. Held-out combinations never occur in training.

Held-out judge, whole prompt right, 512 prompts of `emojiworld/heldout.jsonl`, seeds 0-511, 10 steps:

| guidance {" | ".join(f"{g:g}" for g in sweep)} |
|{"---|" * len(sweep)}
| {row} |

The judge agrees with the rule verifier on {agreement:.1%} of 500 samples at the best guidance.

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("assets/tiny-sd")
pipe("three roses on a pink background", guidance_scale=2.0, num_inference_steps=10).images[0]
```

Made by `genalign lab build sd` in an hour of one core."""
    return text


def _flow_card(folder: Path) -> str:
    stages: dict[str, dict[str, float]] = json.loads((folder / "stages.json").read_text())
    read = stages.pop("read")["held-out captions"]
    kinds = list(next(iter(stages.values())))
    rows = "".join(
        f"\n| {stage} | {' | '.join(f'{figures[kind]:.1%}' for kind in kinds)} |" for stage, figures in stages.items()
    )
    text = f"""A rectified-flow transformer (SD3 class, 6 layers, width 192) with an AutoencoderTiny (64x64x3 to
16x16x4) and one small CLIP text tower, stored twice because the pipeline class has two. It draws in **three steps
without guidance**.
{_WORLD}

A web-trained model in miniature: capable, distracted, and quick. Its stages, one after another:

1. *read*: the text tower learns to tell all six facts of a caption; of held-out captions it tells {read:.1%} whole.
2. *capable*: true captions of training scenes, and of scenes that mix counts and sizes, which teach number apart from
   the object. Nothing that is held out occurs in them.
3. *half-hearted*: a few hundred steps on web-like captions; of the facts a scene has, {shares_of(DISTRACTED)}.
   It can draw what it is asked, and often does not: that is what alignment mends.
4. *few steps*: guidance and {TEACHER_STEPS} steps are distilled into three (PeRFlow, arXiv 2405.07510).

Held-out judge, 512 prompts of `emojiworld/heldout.jsonl`, share of prompts right, whole and by kind of fact:

| stage | {" | ".join(kinds)} |
|{"---|" * (1 + len(kinds))}{rows}

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("assets/tiny-flow")
call = dict(guidance_scale=1.0, sigmas=[1, 2 / 3, 1 / 3], max_sequence_length=1)
pipe("three roses on a pink background", **call).images[0]
```

`num_inference_steps=3` is not the same: diffusers' scheduler then puts the last of three levels at 0.009, so that two
steps do all the work.

Made by `genalign lab build flow`."""
    return text


def _turbo_card(folder: Path) -> str:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(shipped("assets", "tiny-flow"), torch_dtype=torch.float32)
    prompts = heldout_prompts(512)

    def one_step() -> tuple[Tensor, np.ndarray]:
        images = draw(pipeline, prompts, 1.0, 1, max_sequence_length=1)
        return images, Judge()(prompts, Media(image=Track(images))).total.numpy()

    _, bare = one_step()
    pipeline.load_lora_weights(folder)
    images, verdict = one_step()
    rule = verify_batch(images.permute(0, 2, 3, 1).numpy()[:500], [p.facts for p in prompts[:500]])
    agreement = float((rule["all_facts"][0] == verdict[:500]).mean())
    text = f"""A LoRA by which tiny-flow draws in one step and without guidance, distilled by regression on where
tiny-flow's own ten steps lead and by distribution matching (DMD); `policy.merged` of image-reno. {_WORLD}

Held-out judge, whole prompt right, 512 prompts of `emojiworld/heldout.jsonl`, seeds 0-511, one step:
{verdict.mean():.1%}; tiny-flow without it, in one step: {bare.mean():.1%} (its card says what three and ten reach). The
judge agrees with the rule verifier on {agreement:.1%} of 500 of them.

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("assets/tiny-flow")
pipe.load_lora_weights("assets/tiny-turbo")
pipe("three roses", guidance_scale=1.0, num_inference_steps=1, max_sequence_length=1).images[0]
```

Made by `genalign lab build turbo`."""
    return text


def _text_head_accuracy(folder: Path) -> float:
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from genalign.lab.text_head import WIDTH, head_logits, text_head_accuracy

    head = nn.Linear(WIDTH, 1)
    head.load_state_dict(load_file(folder / "head.safetensors"))
    both = nn.ModuleDict({"backbone": AutoModel.from_pretrained(folder, dtype=torch.float32), "head": head}).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return text_head_accuracy(lambda texts: head_logits(both, tokenizer, texts).sigmoid())


def _clip_card(folder: Path) -> str:
    from genalign.lab.clip import clip_accuracy

    return f"""An open_clip model (ViT, 64 patches, width 160, 5 layers), a possible training reward. {_WORLD}

Trained contrastively on rendered training scenes with true captions, each image also against its caption with one
fact changed. On 1,000 held-out scenes it prefers the true caption to one with a changed fact in
{clip_accuracy(folder):.1%}. Load it with `open_clip.create_model_and_transforms("local-dir:assets/tiny-clip")`.

Made by `genalign lab build clip`."""


def _text_head_card(folder: Path) -> str:
    return f"""A DistilBERT encoder (2 layers, width 64) with a linear reward head: how much a text reads like an
EmojiWorld caption, in [0, 1]. {_WORLD}

Trained on captions against the same with shuffled or replaced words: {_text_head_accuracy(folder):.1%} of 2,000 new
ones are told apart. A first learned head for text rewards, not a judge of meaning.

Made by `genalign lab build text-head`."""


def _expander_card(folder: Path) -> str:
    from genalign.lab.expander import LEFT_OUT, expander_accuracy

    kept, named = expander_accuracy(folder)
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in LEFT_OUT.items())
    return f"""A causal language model (Llama class, 3 layers, width 96), the writer of recipe image-parrot: it says
a prompt in full. {_WORLD}

Trained on prompts that leave facts out ({shares}) and the same scene told in full. Of 500 held-out prompts, greedily
expanded, {kept:.1%} keep every object, count and background that was asked; {named:.1%} name a background.

Made by `genalign lab build expander`."""


def _vlm_judge_card(folder: Path) -> str:
    from genalign.lab.vlm import vlm_accuracy

    accuracy, gap = vlm_accuracy(folder)
    return f"""A vision-language model (Llava class: tiny-clip's picture tower, and a Llama of 4 layers, width 128)
that answers "Does this picture show two red apples? Answer yes or no.", a possible training reward. {_WORLD}

Trained by cross-entropy on rendered scenes of all combinations that never come twice, each asked about truly and
falsely (first with another picture's caption, then with one fact changed, often the relation or the count), and on the
words of the true questions. On 500 new scenes of the combinations that are held out from every generator, each asked
about truly and with one fact changed, its balanced accuracy is {accuracy:.1%}, and the expected calibration error of
p(yes) {gap:.3f} (10 bins).

```yaml
reward: {{use: judge-yes-no, model: tiny-vlm-judge, question: "Does this picture show {{prompt}}?"}}
```

Made by `genalign lab build vlm-judge`."""


def _judge_card(folder: Path) -> str:
    right, rejected = judge_accuracy()
    return f"""The held-out judge: a convolutional detector of object centres and background colour. **Never use it
as a training reward.** {_WORLD}

Trained on rendered scenes and true facts only, never on generated images or the rule verifier's output; augmented by
gain, offset, blur and noise. On 1,000 clean held-out scenes {right:.1%} of whole prompts are judged right, and
{rejected:.1%} of captions with one changed fact are rejected. Its agreement with the verifier on base samples stands
in the card of each image model.

Made by `genalign lab build judge`."""


TAGS = {  # of each model's card: what the model is, and the function `module:name` that writes the text
    "tiny-flow": ("text-to-image", "cards:_flow_card"),
    "tiny-turbo": ("text-to-image", "cards:_turbo_card"),
    "tiny-sd": ("text-to-image", "cards:_sd_card"),
    "tiny-clip": ("clip", "cards:_clip_card"),
    "tiny-judge": ("judge", "cards:_judge_card"),
    "tiny-text-head": ("reward-model", "cards:_text_head_card"),
    "tiny-expander": ("prompt-expansion", "cards:_expander_card"),
    "tiny-vlm-judge": ("reward-model", "cards:_vlm_judge_card"),
    "tiny-vlm": ("image-text-to-text", "vlm_figures:vlm_card"),
    "tiny-lm": ("text-generation", "sums_card:sums_card"),
    "tiny-mdlm": ("text-generation", "sums_card:sums_card"),
    "tiny-video": ("text-to-video", "video_card:video_card"),
    "tiny-video-judge": ("judge", "video_card:judge_card"),
    "tiny-video-reward": ("reward-model", "video_reward:reward_card"),
    "tiny-music": ("text-to-audio", "music_card:music_card"),
    "tiny-music-judge": ("judge", "music_card:judge_card"),
    "tiny-clap": ("clap", "music_clap:clap_card"),
}
WORLDS = {
    "tiny-lm": "sumworld",
    "tiny-mdlm": "sumworld",
    "tiny-music": "melodyworld",
    "tiny-music-judge": "melodyworld",
    "tiny-clap": "melodyworld",
}


def write_card(folder: Path, model: str | None = None) -> None:
    """Measure the model in `folder`, of those that are shipped `model` (default: as the folder is called), and write
    its README.md."""
    model = model or folder.name
    tag, place = TAGS[model]
    module, name = place.split(":")
    text = getattr(import_module(f"genalign.lab.{module}"), name)(folder)
    world = WORLDS.get(model, "emojiworld")
    (folder / "README.md").write_text(_HEAD.format(world=world, tag=tag, title=model, text=text) + "\n")
