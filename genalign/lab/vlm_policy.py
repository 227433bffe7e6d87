"""tiny-vlm: a small vision-language model that answers questions about EmojiWorld's scenes, for the language policy.

A LlavaForConditionalGeneration that begins as tiny-vlm-judge, which can see and knows the words of captions. It is
taught to answer, all kinds of question alike; then a short training on careless answers makes it half-hearted.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.files.shipped import shipped
from genalign.lab.clip import PREPROCESS
from genalign.lab.judge import shake
from genalign.lab.questions import KINDS, Question, careless
from genalign.lab.questions_files import examples
from genalign.lab.text import build_tokenizer
from genalign.lab.vlm import PATCHES, vlm_model, vlm_processor
from genalign.lab.vlm_figures import STAGES, measure
from genalign.lab.world import SIZE, caption, sample_facts
from genalign.training.fit import fit

LONGEST = 192  # tokens of picture, question and answer
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
    "{% endif %}" + END + "{% else %}" + BEGIN + "{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
WORDS = (
    "how many are there together is what where the shown beside colour background left right of above below or yes no"
)
HARD = ("where", "side", "count", "object", "sum")
IGNORED = -100  # the label of a token that is not learnt


def sentence(rng: np.random.Generator) -> str:
    """A caption, or the words of questions: what becomes one token each."""
    return caption(sample_facts(rng), rng) if rng.random() < 0.9 else WORDS


def policy_tokenizer() -> Any:
    """A tokenizer of the words of captions and questions, the numbers of pixels, and the tags, each one token."""
    from tokenizers import AddedToken, decoders

    tokenizer = build_tokenizer(sentence, LONGEST)
    # AutoProcessor does not make a CLIPTokenizer of it, whose own decoding alone puts a space at a word's end.
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    tokenizer.add_tokens([AddedToken(str(number), single_word=True) for number in range(10, SIZE + 1)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *TAGS]})
    return tokenizer


def policy_model(tokenizer: Any, judge: Path) -> Any:
    """The judge's own model and weights; words that it does not know begin at random."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = vlm_model(tokenizer)
    model.config.text_config.max_position_embeddings = LONGEST
    weights = AutoModelForImageTextToText.from_pretrained(judge, dtype=torch.float32).state_dict()
    old = weights["model.language_model.embed_tokens.weight"]
    weights = {name: value for name, value in weights.items() if value.shape != old.shape}
    model.load_state_dict(weights, strict=False)
    known = AutoTokenizer.from_pretrained(judge).get_vocab()
    with torch.no_grad():
        new = model.get_input_embeddings().weight.normal_(0.0, float(old.std()))
        for token, row in tokenizer.get_vocab().items():
            there = known.get(token, known.get(token.removesuffix("</w>")))
            if there is not None:
                new[row] = old[there]
        relate_numbers(new, tokenizer)
    return model


@torch.no_grad()
def relate_numbers(embeddings: Tensor, tokenizer: Any, width: float = 3.0) -> None:
    """Make the rows of neighbouring numbers alike (a Gaussian average of `width` numbers, at the length they had), so
    that what is learnt of one edge of a box holds for those near it."""
    known = tokenizer.get_vocab()
    rows = torch.tensor([known.get(str(number) if number > 9 else f"{number}</w>") for number in range(SIZE + 1)])
    distance = torch.arange(SIZE + 1)[:, None] - torch.arange(SIZE + 1)
    mean = torch.softmax(-0.5 * (distance / width) ** 2, dim=1) @ embeddings[rows]
    embeddings[rows] = F.normalize(mean, dim=1) * embeddings[rows].norm(dim=1).mean()


def answer_loss(model: Any, tokenizer: Any, pixels: Tensor, pairs: Sequence[Sequence[tuple[str, str]]]) -> Tensor:
    """Mean cross-entropy of the tokens of answers, about R pictures; pixels (R,3,64,64) are normalised.

    pairs: of each picture its (question, answer) texts. They stand one behind the other, the picture before them once:
    each sees the picture and itself, at the positions that it has alone, which takes half the time of a row for each.
    """
    blocks = [_block(tokenizer, of_one) for of_one in pairs]
    pad = torch.nn.utils.rnn.pad_sequence
    words = pad([block.ids for block in blocks], batch_first=True, padding_value=tokenizer.eos_token_id)
    target = pad([block.labels for block in blocks], batch_first=True, padding_value=IGNORED)
    which = pad([block.which for block in blocks], batch_first=True, padding_value=-1)
    position = pad([block.position for block in blocks], batch_first=True)

    embed, before = model.get_input_embeddings(), 1 + PATCHES
    begin = embed(torch.tensor([[tokenizer.bos_token_id]])).expand(len(pixels), -1, -1)
    seen = torch.stack(list(model.model.get_image_features(pixel_values=pixels).pooler_output))  # (R,PATCHES,W)
    which = F.pad(which, (before, 0), value=0)  # 0: the picture, 1 ...: the questions, -1: padding
    position = torch.cat([torch.arange(before).expand(len(pixels), -1), position], 1)
    length = which.shape[1]
    sees = (which[:, None] == which[:, :, None]) | (which[:, None] == 0)
    mask = (sees & torch.ones(length, length, dtype=torch.bool).tril())[:, None]  # (R,1,L,L)
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([begin, seen, embed(words)], 1), attention_mask=bias, position_ids=position
    ).last_hidden_state[:, before - 1 : -1]  # (R,S,W) before each word
    learnt = target != IGNORED
    return F.cross_entropy(model.lm_head(hidden[learnt]), target[learnt])


class Block(NamedTuple):
    """Of all questions about a picture, (S,) each: token ids, what is learnt, which question, and the position."""

    ids: Tensor
    labels: Tensor
    which: Tensor
    position: Tensor


def _block(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Block:
    ids: list[int] = []
    labels: list[int] = []
    which: list[int] = []
    position: list[int] = []
    for number, (question, answer) in enumerate(pairs, 1):
        asked = tokenizer(question, add_special_tokens=False).input_ids
        written = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        length = len(asked) + len(written)
        ids += asked + written
        labels += [IGNORED] * len(asked) + written
        which += [number] * length
        position += range(1 + PATCHES, 1 + PATCHES + length)
    return Block(torch.tensor(ids), torch.tensor(labels), torch.tensor(which), torch.tensor(position))


def normalised(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(PREPROCESS[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (pictures - mean) / std


def build_capable(work: Path, seed: int = 41) -> tuple[Any, Any]:
    """The model and its tokenizer, taught by right answers about training scenes that never come twice: first all that
    can be asked of few pictures, then, of more pictures, mostly what it finds hard."""
    torch.manual_seed(seed)
    tokenizer = policy_tokenizer()
    model = policy_model(tokenizer, shipped("assets", "tiny-vlm-judge"))
    for name, steps, pictures, each, kinds in (("first", 850, 8, 5, KINDS), ("closer", 400, 12, 3, HARD)):
        loss_of = partial(taught, model, tokenizer, (seed, len(kinds)), pictures, each, kinds, _right)
        state = work / f"vlm-{name}.safetensors"
        fit(model, loss_of, steps=steps, learning_rate=1e-3, state=state, ema_decay=0.995, weight_decay=0.05)
    return model, tokenizer


def taught(
    model: Any, tokenizer: Any, seed: tuple[int, ...], pictures: int, each: int, kinds: Sequence[str],
    answer: Callable[[Question, np.random.Generator], str], step: int,
) -> Tensor:  # fmt: skip
    """The loss of a step: `each` questions about each of some pictures, the first of `kinds`, answered by `answer`."""
    rng = np.random.default_rng((*seed, step))
    shown, asked = examples(rng, pictures, each, kinds=kinds)
    pairs = [[(one.text, answer(one, rng)) for one in of_one] for of_one in asked]
    return answer_loss(model, tokenizer, normalised(shake(shown, rng)), pairs)


def _right(question: Question, rng: np.random.Generator) -> str:
    return question.written


def build_half_hearted(work: Path, model: Any, tokenizer: Any, steps: int = 80, seed: int = 42) -> None:
    """Teach the capable model how somebody answers who does not look closely; it forgets little of how to."""
    loss_of = partial(taught, model, tokenizer, (seed,), 8, 5, KINDS, careless)
    state = work / "vlm-half-hearted.safetensors"
    fit(model, loss_of, steps=steps, learning_rate=1e-3, state=state, ema_decay=0.98, weight_decay=0.05)


def build_policy(work: Path) -> tuple[Any, Any, dict[str, dict[str, float]]]:
    """The half-hearted model and its tokenizer, and what each stage reached."""
    model, tokenizer = build_capable(work)
    processor = policy_processor(tokenizer)
    figures = {"capable": measure(model, processor)}
    build_half_hearted(work, model, tokenizer)
    return model, tokenizer, {**figures, "half-hearted": measure(model, processor)}


def save_policy(model: Any, tokenizer: Any, figures: dict[str, dict[str, float]], folder: Path) -> None:
    """Write the folder that AutoModelForImageTextToText and AutoProcessor load, in fp16, and the stages' figures."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    policy_processor(tokenizer).save_pretrained(folder)
    (folder / STAGES).write_text(json.dumps(figures, indent=1) + "\n")


def policy_processor(tokenizer: Any) -> Any:
    processor = vlm_processor(tokenizer)
    processor.chat_template = CHAT
    return processor
