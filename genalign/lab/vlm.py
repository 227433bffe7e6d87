"""tiny-vlm-judge: a small vision-language model that judges whether a picture shows what a caption states.

A LlavaForConditionalGeneration, so that any tool may ask it: "Does this picture show two red apples? Answer yes or no."
Its answer's probability is a reward (`use: judge-yes-no`), and calibrated, for it is trained by
cross-entropy on scenes that never come twice. Its words are trained beside its answers: one bit a picture is too little
to learn to see by.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.files.shipped import shipped
from genalign.lab.clip import PREPROCESS
from genalign.lab.judge import shake
from genalign.lab.text import build_tokenizer
from genalign.lab.world import SIZE, caption, change_one_fact, place, render, sample_facts
from genalign.precision import autocast
from genalign.training.fit import fit

PATCH = 8
PATCHES = (SIZE // PATCH) ** 2
LONGEST = 128
QUESTION = "Does this picture show {prompt}?"
ASKED = "\n" + QUESTION + " Answer yes or no."  # what YesNoJudge's own template makes of the question
WORDS = ("yes", "no", "does", "this", "show", "answer", "or")
CHAT = (
    "{% for m in messages %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def vlm_tokenizer() -> Any:
    """The lab's tokenizer with the words of the question, each one token, and a token that stands for a patch."""
    from tokenizers import AddedToken

    tokenizer = build_tokenizer()
    tokenizer.model_max_length = LONGEST
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in WORDS])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def vlm_processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size=size, do_center_crop=False, image_mean=PREPROCESS["mean"], image_std=PREPROCESS["std"]
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def vlm_model(tokenizer: Any, width: int = 128, layers: int = 4) -> Any:
    """tiny-clip's picture tower (its own weights), a projector, and a Llama of `layers` layers from scratch."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=160, intermediate_size=640, num_hidden_layers=5, num_attention_heads=5, image_size=SIZE,
            patch_size=PATCH, hidden_act="gelu",
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LONGEST,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    take_tower(model.model.vision_tower, shipped("assets", "tiny-clip"))
    return model


@torch.no_grad()
def take_tower(tower: Any, clip: Path) -> None:
    """Copy the picture tower of an open_clip folder into transformers' CLIPVisionModel of the same sizes."""
    from safetensors.torch import load_file

    theirs = {
        k[7:]: v.float() for k, v in load_file(clip / "open_clip_model.safetensors").items() if k[:7] == "visual."
    }
    ours = {
        "embeddings.class_embedding": theirs["class_embedding"],
        "embeddings.position_embedding.weight": theirs["positional_embedding"],
        "embeddings.patch_embedding.weight": theirs["conv1.weight"],
    }
    plain = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    inside = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    inside |= {"attn.out_proj": "self_attn.out_proj"}
    depth = 1 + max(int(name.split(".")[2]) for name in theirs if name.startswith("transformer.resblocks."))
    for kind in ("weight", "bias"):
        ours |= {f"{new}.{kind}": theirs[f"{old}.{kind}"] for old, new in plain.items()}
        for k in range(depth):
            old_layer, new_layer = f"transformer.resblocks.{k}", f"encoder.layers.{k}"
            ours |= {f"{new_layer}.{new}.{kind}": theirs[f"{old_layer}.{old}.{kind}"] for old, new in inside.items()}
            parts = theirs[f"{old_layer}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                ours[f"{new_layer}.self_attn.{name}.{kind}"] = part
    root = getattr(tower, "vision_model", tower)
    missing, unexpected = root.load_state_dict(ours, strict=False)
    if unexpected or [name for name in missing if "position_ids" not in name]:
        raise ValueError(f"the tower of {clip} does not fit: missing {missing}, unexpected {unexpected}")


def scenes(
    rng: np.random.Generator, rows: int, split: str | None = None, easy: float = 0.0, intricate: float = 0.0
) -> tuple[np.ndarray, list[str], Tensor]:
    """Pictures (rows, 64, 64, 3), captions (2 rows), a true and a false one of each picture in turn, and labels.

    A false caption has one fact changed; with probability `easy` it is the next picture's, else with probability
    `intricate` what is changed is the relation or the count, where there is one. split: as `sample_facts` has it, None
    for all combinations.
    """
    pictures, stated = [], []
    for _ in range(rows):
        facts = sample_facts(rng, split)
        pictures.append(render(place(facts, rng), rng))
        stated.append(dict(facts, background=None) if rng.random() < 0.4 else facts)
    captions = []
    for k, facts in enumerate(stated):
        kinds = ("relation" if facts["relation"] else "count",) if rng.random() < intricate else None
        false = stated[(k + 1) % rows] if rng.random() < easy else change_one_fact(facts, rng, kinds)
        captions += [caption(facts, rng), caption(false, rng)]
    return np.stack(pictures), captions, torch.tensor([1, 0] * rows)


def read(model: Any, tokenizer: Any, pixels: Tensor, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B,L,V) after every token, the ids (B,L), and which are no padding (B,L).

    pixels (R,3,64,64) are normalised; each picture is asked about B / R captions in turn.
    """
    texts = ["<image>" * PATCHES + ASKED.format(prompt=text) for text in captions]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    seen = torch.stack(list(model.model.get_image_features(pixel_values=pixels).pooler_output))  # (R,PATCHES,W)
    words = model.get_input_embeddings()(inputs.input_ids[:, PATCHES:])
    both = torch.cat([seen.repeat_interleave(len(captions) // len(seen), 0).to(words.dtype), words], 1)
    logits = model(inputs_embeds=both, attention_mask=inputs.attention_mask).logits
    return logits.float(), inputs.input_ids, inputs.attention_mask.bool()


def answer_logits(model: Any, tokenizer: Any, pixels: Tensor, captions: list[str]) -> Tensor:
    """(B,V) logits of the answer's token; see `read`."""
    logits, _, words = read(model, tokenizer, pixels, captions)
    return logits[torch.arange(len(captions)), words.sum(1) - 1]


def build_vlm(work: Path, steps: int = 8000, rows: int = 32, seed: int = 17) -> tuple[Any, Any]:
    """Train on scenes that never come twice, each asked about once truly and once falsely.

    They are of all combinations: only a generator must not see the held-out ones, and a judge to whom they are never
    true learns to refuse them. False captions begin as those of other pictures, and end with one fact changed. The
    words of true questions are predicted as well, which teaches the model to see before it judges.
    """
    torch.manual_seed(seed)
    tokenizer = vlm_tokenizer()
    model = vlm_model(tokenizer)
    mean, std = (torch.tensor(PREPROCESS[k]).view(3, 1, 1) for k in ("mean", "std"))
    answers = torch.tensor(tokenizer.convert_tokens_to_ids(["no", "yes"]))

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        pictures, captions, label = scenes(rng, rows, easy=max(0.0, 1 - 3 * step / steps), intricate=0.5)
        pixels = (shake(pictures, rng) - mean) / std
        with autocast():
            logits, ids, words = read(model, tokenizer, pixels, captions)
        answer = F.cross_entropy(logits[torch.arange(len(captions)), words.sum(1) - 1], answers[label])
        true = label == 1
        spoken = words[true, PATCHES + 1 :]  # what follows the first word of the question
        wording = F.cross_entropy(logits[true, PATCHES:-1][spoken], ids[true, PATCHES + 1 :][spoken])
        return answer + wording

    fit(model, loss_of, steps=steps, learning_rate=1e-3, state=work / "vlm-judge.safetensors", weight_decay=0.05)
    return model, tokenizer


def save_vlm(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the folder that AutoModelForImageTextToText and AutoProcessor load, in fp16."""
    model.half().save_pretrained(folder)
    vlm_processor(tokenizer).save_pretrained(folder)


@torch.no_grad()
def vlm_accuracy(folder: Path, count: int = 500, seed: int = 18) -> tuple[float, float]:
    """Balanced accuracy and expected calibration error (10 equal bins) of p(yes), on clean held-out scenes."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    tokenizer.padding_side = "right"
    mean, std = (torch.tensor(PREPROCESS[k]).view(3, 1, 1) for k in ("mean", "std"))
    no, yes = tokenizer.convert_tokens_to_ids(["no", "yes"])
    pictures, captions, label = scenes(np.random.default_rng(seed), count, "heldout")
    pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2) - mean) / std
    starts = range(0, count, 32)
    logits = torch.cat(
        [answer_logits(model, tokenizer, pixels[k : k + 32], captions[2 * k : 2 * k + 64]) for k in starts]
    )
    p = (logits[:, yes] - logits[:, no]).sigmoid()
    return balanced_accuracy(p, label), calibration_error(p, label)


def balanced_accuracy(p: Tensor, label: Tensor) -> float:
    right = ((p > 0.5) == (label == 1)).double()
    return float((right[label == 1].mean() + right[label == 0].mean()) / 2)


def calibration_error(p: Tensor, label: Tensor, bins: int = 10) -> float:
    """Mean over equal bins of p, weighted by their rows, of |mean p - share of yes| (Guo et al. 2017, equation 3)."""
    index = (p * bins).long().clamp(max=bins - 1)
    gaps = [(p[index == k] - label[index == k]).double().mean().abs() * (index == k).sum() for k in index.unique()]
    return float(torch.stack(gaps).sum() / len(p))
