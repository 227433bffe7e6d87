"""tiny-clip: an open_clip model of EmojiWorld, loaded by open_clip's own API (`local-dir:FOLDER`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.lab.judge import shake
from genalign.lab.text import MAX_TOKENS, build_tokenizer
from genalign.lab.world import SIZE, caption, change_one_fact, place, render, sample_facts
from genalign.training.fit import fit


def settings(vocabulary: int, end_token: int) -> dict[str, Any]:
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "layers": 5, "width": 160, "head_width": 32, "patch_size": 8},
        "text_cfg": {
            "context_length": MAX_TOKENS,
            "vocab_size": vocabulary,
            "width": 128,
            "heads": 4,
            "layers": 3,
            "pool_type": "eos",
            "eos_id": end_token,
            "pad_id": end_token,
            "hf_tokenizer_name": "tiny-clip",
        },
    }


PREPROCESS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def build_clip(work: Path, steps: int = 2200, rows: int = 48, seed: int = 11) -> tuple[Any, Any]:
    """Contrastive training on true captions; each image also meets one caption with a changed fact (NegCLIP,
    Yuksekgonul et al. 2023, arXiv 2210.01936), since in-batch strangers never differ in the relation alone."""
    import open_clip

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = open_clip.CLIP(**settings(len(tokenizer), tokenizer.eos_token_id))
    mean, std = (torch.tensor(PREPROCESS[k]).view(3, 1, 1) for k in ("mean", "std"))

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        images, true, false = [], [], []
        for _ in range(rows):
            facts = sample_facts(rng, "train")
            images.append(render(place(facts, rng), rng))
            stated = dict(facts, background=None) if rng.random() < 0.35 else facts
            true.append(caption(stated, rng))
            false.append(caption(change_one_fact(stated, rng), rng))
        pixels = (shake(torch.from_numpy(np.stack(images)), rng) - mean) / std
        tokens = tokenizer(
            true + false, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            seen, read = model.encode_image(pixels), model.encode_text(tokens)
        seen, read = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        logits = scale * seen @ read.T  # (rows, 2 rows): true captions, then the changed ones
        target = torch.arange(rows)
        own = torch.stack([logits.diagonal(), logits.diagonal(rows)], dim=1)  # (rows, 2): against its double
        return (
            F.cross_entropy(logits, target)
            + F.cross_entropy(logits[:, :rows].T, target)
            + F.cross_entropy(own, torch.zeros(rows, dtype=torch.long))
        )

    fit(model, loss_of, steps=steps, learning_rate=1e-3, state=work / "clip.safetensors", weight_decay=0.05)
    return model, tokenizer


def save_clip(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the folder that `open_clip.create_model_and_transforms("local-dir:...")` loads, in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": settings(len(tokenizer), tokenizer.eos_token_id), "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def clip_accuracy(folder: Path, count: int = 1000, seed: int = 12) -> float:
    """Share of held-out scenes whose true caption scores above the same with one changed fact."""
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    mean, std = (torch.tensor(PREPROCESS[k]).view(3, 1, 1) for k in ("mean", "std"))
    rng = np.random.default_rng(seed)
    right = 0
    for _ in range(count // 50):
        facts = [sample_facts(rng, "heldout") for _ in range(50)]
        images = torch.from_numpy(np.stack([render(place(f, rng), rng) for f in facts])).permute(0, 3, 1, 2)
        texts = [caption(f, rng) for f in facts] + [caption(change_one_fact(f, rng), rng) for f in facts]
        with torch.no_grad():
            seen = F.normalize(model.encode_image((images - mean) / std), dim=-1)
            read = F.normalize(model.encode_text(tokenize(texts)), dim=-1)
        right += int(((seen * read[:50]).sum(-1) > (seen * read[50:]).sum(-1)).sum())
    return right / count
