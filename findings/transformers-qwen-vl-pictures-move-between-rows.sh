#!/usr/bin/env bash
# Qwen-VL's processor shows a row the picture that was given with another row.
#
# Expected: Of texts and a list of pictures a text, each text gets its own pictures, or there is an error where their
#   number is not that of its placeholders.
# Seen: The lists are joined to one, and only the sum is compared. With two placeholders in the first text and one in
#   the second, [[red], [blue, green]] is read as [[red, blue], [green]], bit for bit and without a word.
# Versions: transformers 5.24.0, Qwen2_5_VLProcessor with Qwen2VLImageProcessor (Qwen3-VL's processor does it too).
# Harm: A row of a batch with a picture too many and another with one too few (a dropped frame, a text with a doubled
#   placeholder) shifts the pictures of all rows between: judges and policies score a picture that is not theirs.
# genalign: Placeholders and pictures of a row are made from the same pieces (reward/judge/local.py, _written), one
#   each.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 pillow==13.0.0 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

print("transformers", transformers.__version__)
words = ["<pad>", "<eos>", "<unk>", "a", "b", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
spelling = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
spelling.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=spelling, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
    additional_special_tokens=words[5:],
)
processor = Qwen2_5_VLProcessor(
    image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
)
red, blue, green = (Image.new("RGB", (56, 56), colour) for colour in ("red", "blue", "green"))
shown = "<|vision_start|> <|image_pad|> <|vision_end|> "
texts = [shown + shown + "a", shown + "b"]


def read(pictures: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
    return dict(processor(text=texts, images=pictures, padding=True, return_tensors="pt"))


right, wrong = read([[red, blue], [green]]), read([[red], [blue, green]])
equal = all(torch.equal(right[key], wrong[key]) for key in right)
print("placeholders a row: 2 and 1")
print(f"[[red], [blue, green]] raises nothing and is read as [[red, blue], [green]]: {equal}")
other = not torch.equal(right["pixel_values"], read([[red, green], [blue]])["pixel_values"])
still = equal and other

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
