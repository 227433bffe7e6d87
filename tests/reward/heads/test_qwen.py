"""HPSv3 and VideoReward on a tiny Qwen2-VL: prompt, tokens that are read, head, LoRA weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2VLModel

from genalign.data.judged import Comparisons
from genalign.files.shipped import shipped
from genalign.media.files import read_media
from genalign.media.video import write as write_video
from genalign.reward import Runner, build_reward
from genalign.reward.heads.hpsv3 import HpsV3
from genalign.reward.heads.patches import patches
from genalign.reward.heads.qwen import TokenHead
from genalign.reward.heads.qwen_files import merged, published_names, read_template
from genalign.reward.runtime.cache import Cached
from genalign.reward.runtime.wire import pack_batch, unpack_batch
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.pictures import as_tensor, photographs
from tests.helpers.tiny_heads import as_transformers_4, qwen_config, randomise, save_state, tiny_qwen_base, write_json
from tests.helpers.toy_rewards import prompts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_base(tmp_path_factory.mktemp("qwen") / "base")


def net_of(head: torch.nn.Module, words: int) -> TokenHead:
    config = qwen_config()
    config.text_config.vocab_size = words
    return randomise(TokenHead(config, head), std=0.15)  # type: ignore[return-value]


def by_hand(state: dict[str, Tensor], ids: list[int], cut: Tensor, grid: list[int], filler: int, token: int) -> Tensor:
    """The hidden state at `token` of one row, all positions counted up by one: an unbatched, unpadded reading.

    As the official code has it: transformers 4.45 made no three-axis positions outside generate(), and
    model.to(bfloat16) rounded the rotary frequencies.
    """
    config = qwen_config()
    config.text_config.vocab_size = state["model.language_model.embed_tokens.weight"].shape[0]
    net = Qwen2VLModel(config).eval()
    net.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    rotary = [buffer for key, buffer in net.named_buffers() if key.endswith("inv_freq")]
    assert len({len(buffer) for buffer in rotary}) == 2  # of the words, and of the patches
    for buffer in rotary:
        buffer.copy_(buffer.bfloat16())
    row = torch.tensor([ids])
    at = torch.arange(len(ids)).view(1, 1, -1).expand(3, 1, -1)
    kind = "image" if filler == config.image_token_id else "video"
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    types = (row == filler).int() * (1 if kind == "image" else 2)
    with torch.no_grad():
        hidden = net(
            input_ids=row,
            position_ids=at,
            mm_token_type_ids=types,
            **{pixels: cut, f"{kind}_grid_thw": torch.tensor([grid])},
        ).last_hidden_state[0]
    assert ids.count(token) == 1
    return hidden[ids.index(token)]


def test_hpsv3_is_mu_and_sigma_at_its_token(tmp_path: Path, base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|Reward|>"], special_tokens=True)
    head = torch.nn.Sequential(
        *(torch.nn.Linear(32, 1024), torch.nn.ReLU(), torch.nn.Dropout(0.05)),
        *(torch.nn.Linear(1024, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)),
    )
    net = net_of(head, len(tokenizer))
    state = dict(net.state_dict())
    save_state(as_transformers_4(state), tmp_path / "HPSv3.safetensors")
    template = "rate the prompt : {text_prompt} good <|Reward|> </s>"
    (tmp_path / "t.txt").write_text(template)
    spec = {"use": "hpsv3", "model": str(tmp_path), "base": str(base), "template": "t.txt", "dtype": "float32"}
    reward = build_reward(spec, tmp_path)
    asked = [Prompt("a cat"), Prompt("two cats and the star <|Reward|>"), Prompt("prompt number 3")]
    drawn = photographs(3, 448, 448)
    scores = reward(asked, Media(image=Track(as_tensor(drawn))))
    for row, picture in enumerate(drawn):
        cut, grid = patches(as_tensor([picture]), 14, 2, 2, 200704, 200704)
        said = asked[row].text.replace("<|", "< |")
        text = (
            f"<|im_start|>user <|vision_start|>{'<|image_pad|>' * 256}<|vision_end|>rate the prompt : {said} good "
            f"<|Reward|> </s><|im_end|><|im_start|>the "
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        hidden = by_hand(state, ids, cut, grid, 8, tokenizer.convert_tokens_to_ids("<|Reward|>"))
        h = F.relu(F.linear(hidden, state["rm_head.0.weight"], state["rm_head.0.bias"]))
        h = F.relu(F.linear(h, state["rm_head.3.weight"], state["rm_head.3.bias"]))
        mu, log_sigma = F.linear(h, state["rm_head.5.weight"], state["rm_head.5.bias"]).tolist()
        assert scores.total[row].item() == pytest.approx(mu, abs=1e-4)
        assert scores.std is not None
        assert scores.std[row].item() == pytest.approx(math.exp(log_sigma), rel=1e-4)
    assert scores.total.std() > 1e-3
    assert scores.names == ("hpsv3",)
    halved = build_reward({**spec, "dtype": "bfloat16"}, tmp_path)(asked, Media(image=Track(as_tensor(drawn))))
    assert halved.total.dtype == torch.float32
    assert torch.allclose(halved.total, scores.total, atol=0.05)
    alone = reward(asked[1:2], Media(image=Track(as_tensor(drawn[1:2]))))
    assert alone.total.item() == pytest.approx(scores.total[1].item(), abs=1e-5)
    pixels = as_tensor(drawn[:1]).requires_grad_()
    reward(asked[:1], Media(image=Track(pixels))).total.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert net.rm_head[0].weight.grad is None


def test_the_published_instruction_ends_with_the_token_and_is_whole() -> None:
    text = read_template(shipped("rewards", "hpsv3-template.txt"))
    import hashlib

    # of INSTRUCTION + prompt_with_special_token in hpsv3 1.0.0, hpsv3/dataset/data_collator_qwen.py
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
    )
    assert text.count("{text_prompt}") == text.count("<|Reward|>") == 1
    assert text.index("{text_prompt}") < text.index("<|Reward|>")


def test_hpsv3s_head_and_backbone_have_the_published_names_and_shapes() -> None:
    """Names as HPSv3's class under transformers 4.45 saves them, sizes as Qwen2-VL-7B's config.json has them."""
    from transformers import Qwen2VLConfig

    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 151658}
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "patch_size": 14}
    with torch.device("meta"):
        net = TokenHead(Qwen2VLConfig(text_config=text, vision_config=vision), HpsV3.head(None, 3584, {}))  # type: ignore[arg-type]
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    published = {
        "model.embed_tokens.weight": (151658, 3584),
        "model.layers.27.self_attn.k_proj.bias": (512,),
        "model.layers.0.mlp.down_proj.weight": (3584, 18944),
        "model.norm.weight": (3584,),
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.blocks.31.attn.qkv.weight": (3840, 1280),
        "visual.blocks.0.mlp.fc1.weight": (5120, 1280),
        "visual.merger.mlp.2.weight": (3584, 5120),
        "rm_head.0.weight": (1024, 3584),
        "rm_head.3.weight": (16, 1024),
        "rm_head.5.weight": (2, 16),
        "rm_head.5.bias": (2,),
    }
    for key, shape in published.items():
        assert shapes[published_names(key)] == shape, key


TEMPLATE = "rate a : <|VQ_reward|> and : <|MQ_reward|> the prompt {text_prompt} : <|TA_reward|> </s>"
TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")


def test_videoreward_reads_each_aspect_at_its_own_token(tmp_path: Path, base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    net = net_of(torch.nn.Linear(32, 3, bias=False), len(tokenizer))
    state = dict(net.state_dict())
    save_state(as_transformers_4(state), tmp_path / "model.safetensors")
    (tmp_path / "prompt_template.py").write_text(f"import nothing_at_all\nDETAILED = {TEMPLATE!r}\n")
    spec: dict[str, Any] = {"use": "videoreward", "model": str(tmp_path), "base": str(base), "dtype": "float32"}
    reward = build_reward({**spec, "template": "prompt_template.py:DETAILED"}, tmp_path)
    videos = torch.stack([as_tensor(photographs(9, 364, 280)), as_tensor(photographs(9, 364, 280)).flip(0)])
    asked = [Prompt("a cat"), Prompt("two stars and the cat")]
    scores = reward(asked, Media(video=Track(videos, rate=4.0)))
    for row in range(2):
        cut, grid = patches(videos[row][[0, 3, 5, 8]], 14, 2, 2, 100352, 200704)
        text = (
            f"<|im_start|>user <|vision_start|>{'<|video_pad|>' * (math.prod(grid) // 4)}<|vision_end|>"
            f"{TEMPLATE.replace('{text_prompt}', asked[row].text)}<|im_end|><|im_start|>the "
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for k, token in enumerate(TOKENS):
            hidden = by_hand(state, ids, cut, grid, 9, tokenizer.convert_tokens_to_ids(token))
            expected = state["rm_head.weight"][k] @ hidden  # the diagonal of (token, output)
            assert scores.values[row, k].item() == pytest.approx(expected.item(), abs=1e-4)
    assert scores.names == ("VQ", "MQ", "TA")
    assert torch.allclose(scores.total, scores.values.sum(1))
    other = reward([Prompt("prompt number 3"), asked[1]], Media(video=Track(videos, rate=4.0)))
    assert torch.allclose(other.values[:, :2], scores.values[:, :2], atol=1e-5)  # VQ and MQ stand before the prompt
    assert (other.values[0, 2] - scores.values[0, 2]).abs() > 1e-4
    unit = build_reward({**spec, "template": "prompt_template.py:DETAILED", "calibrate": "published"}, tmp_path)
    normed = unit(asked, Media(video=Track(videos, rate=4.0)))
    mean, std = torch.tensor([3.6757, 1.1646, 2.8105]), torch.tensor([2.2476, 1.3811, 2.5121])
    assert torch.allclose(normed.values, (scores.values - mean) / std, atol=1e-5)
    assert torch.allclose(torch.tensor(normed.info["raw"]), scores.values, atol=1e-5)
    with pytest.raises(UsageError, match="frames a second"):
        reward(asked, Media(video=Track(videos)))


def tiny_videoreward(folder: Path, base: Path, **settings: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    net = net_of(torch.nn.Linear(32, 3, bias=False), len(tokenizer))
    save_state(as_transformers_4(dict(net.state_dict())), folder / "model.safetensors")
    (folder / "t.txt").write_text(TEMPLATE)
    spec = {"use": "videoreward", "model": str(folder), "base": str(base), "dtype": "float32", "template": "t.txt"}
    return build_reward({**spec, **settings}, folder)


def official_frames(total: int, rate: float, fps: float) -> list[int]:
    """VideoAlign's smart_nframes, and the linspace of its readers."""
    most = math.floor(min(768, total) / 2) * 2
    count = round(min(max(total / rate * fps, 4), most) / 2) * 2
    return torch.linspace(0, total - 1, min(count, total)).round().long().tolist()


@pytest.mark.parametrize(
    ("total", "rate", "fps", "by_hand"),
    [(24, 24, 2.0, [0, 8, 15, 23]), (24, 24, 8.0, None), (24, 24, 24.0, None), (60, 30, 2.0, None), (5, 2, 2.0, None)],
)
@pytest.mark.parametrize("through", ["a file to score", "a judged sample"])
def test_frames_of_a_file_are_the_official_choice(
    tmp_path: Path, base: Path, total: int, rate: int, fps: float, by_hand: list[int] | None, through: str
) -> None:
    """Frame k is gray of level k / total, so that the frames read are known by their brightness."""
    levels = torch.arange(total).view(-1, 1, 1, 1).expand(-1, 3, 32, 32) / total
    file = write_video(levels, rate, tmp_path / "x.mp4")
    if through == "a file to score":
        media = read_media([file])
    else:
        found = Comparisons("x", "x", tmp_path, "x")
        media = found.load([found.item("a ball", "x.mp4", "video")])[1]
    reward = tiny_videoreward(tmp_path, base, fps=fps)
    (frames,) = reward.frames(media)
    chosen = (frames.mean((1, 2, 3)) * total).round().long().tolist()
    assert chosen == official_frames(total, rate, fps)
    assert by_hand in (None, chosen)
    assert (reward.version == tiny_videoreward(tmp_path, base).version) == (fps == 2.0)  # of which caches are made


def test_frames_are_sampled_as_in_training_or_refused(tmp_path: Path, base: Path) -> None:
    """What VideoAlign writes beside its weights is the rate at which the checkpoint knows how fast things move."""
    clip = Media(video=Track(torch.rand(1, 48, 3, 32, 32), rate=24.0))
    write_json({"data_config": {"fps": 4, "max_frame_pixels": 200704}}, tmp_path / "model_config.json")
    reward, same = tiny_videoreward(tmp_path, base), tiny_videoreward(tmp_path, base, fps=4)
    assert len(reward.frames(clip)[0]) == 8  # of two seconds
    assert reward.version == same.version
    with pytest.raises(UsageError, match=r"trained on 4 frames a second, .* at fps: 2; leave fps out"):
        tiny_videoreward(tmp_path, base, fps=2)
    write_json({"data_config": {"num_frames": 8, "fps": None}}, tmp_path / "model_config.json")
    assert len(tiny_videoreward(tmp_path, base).frames(clip)[0]) == 4
    for wrong in (0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="must be above 0 frames a second"):
            tiny_videoreward(tmp_path, base, fps=wrong)
    with pytest.raises(UsageError, match="needs the frames a second"):
        reward.frames(Media(video=Track(torch.rand(1, 8, 3, 32, 32), rate=-2.0)))


def test_videos_of_several_rates_are_each_read_at_their_own(tmp_path: Path, base: Path) -> None:
    found = Comparisons("x", "x", tmp_path, "x")
    for name, rate in (("a", 24), ("b", 12)):
        write_video(torch.rand(24, 3, 32, 32), rate, tmp_path / f"{name}.mp4")
        found.item("a ball", f"{name}.mp4", "video")
    reward = tiny_videoreward(tmp_path, base, batch_size=1, fps=4.0)
    asked, both = found.load([0, 1])
    assert both["video"].rates == (24.0, 12.0)
    assert [len(frames) for frames in reward.frames(both)] == [4, 8]
    alone = torch.cat([reward(*found.load([place])).values for place in (0, 1)])
    assert torch.allclose(Runner(reward)(asked, both).values, alone, atol=1e-6)
    assert Cached(reward)(asked, both).values.shape == (2, 3)
    again = unpack_batch(pack_batch(asked, both, None))[1]
    assert (again["video"].rate, again["video"].rates) == (None, (24.0, 12.0))


def test_a_video_or_picture_that_cannot_be_read_masks_its_row(tmp_path: Path, base: Path) -> None:
    reward = tiny_videoreward(tmp_path, base)
    good = [as_tensor(photographs(6, 56, 84)), as_tensor(photographs(6, 84, 56))]
    bad = {
        "a video of 1 frames is too short": good[0][:1],
        "is too narrow": torch.rand(4, 3, 2, 500),
        "not numbers": torch.full((4, 3, 56, 56), math.nan),
        "is empty": torch.rand(0, 3, 56, 56),
        "and the model reads 2048; shorten them": good[0],
    }
    asked = [*prompts(2), *prompts(4), Prompt("cat " * 3000)]
    scores = reward(asked, Media(video=Track([*good, *bad.values()], rate=6.0)))
    assert scores.failed[:, 0].tolist() == [False, False, *[True] * 5]
    for error, wanted in zip(scores.info["error"][2:], bad, strict=True):
        assert wanted in error
    assert torch.allclose(scores.values[:2], reward(asked[:2], Media(video=Track(good, rate=6.0))).values, atol=1e-6)
    assert bool(scores.total_valid[:2].all())
    assert not scores.total_valid[2:].any()


def test_lora_weights_are_merged_as_peft_merges_them(tmp_path: Path) -> None:
    """VideoReward's checkpoint is a PEFT state dict: base_model.model.*, base_layer, lora_A, lora_B."""
    from peft import LoraConfig, get_peft_model

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.other = torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.proj(x))

    for rslora in (False, True):
        torch.manual_seed(0)
        settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "use_rslora": rslora}
        tuned = get_peft_model(Tiny(), LoraConfig(target_modules=["proj"], modules_to_save=["other"], **settings))
        randomise(tuned, 0.5)
        written = write_json(
            {"peft_lora_config": {"lora_r": 4, "lora_alpha": 12, "use_rslora": rslora}}, tmp_path / "c.json"
        )
        plain = merged(tuned.state_dict(), written)
        assert set(plain) == {"proj.weight", "proj.bias", "other.weight", "other.bias"}
        x = torch.randn(3, 6)
        bare = Tiny()
        bare.load_state_dict(plain)
        assert torch.allclose(bare(x), tuned(x), atol=1e-5)
        assert not torch.allclose(plain["proj.weight"], tuned.base_model.model.proj.base_layer.weight, atol=1e-2)
    with pytest.raises(UsageError, match="does not say how its LoRA weights are scaled"):
        merged(tuned.state_dict(), tmp_path / "absent.json")


def test_wrong_bases_templates_and_dtypes_are_refused(tmp_path: Path, base: Path) -> None:
    net = net_of(torch.nn.Linear(32, 3, bias=False), 20)
    save_state(as_transformers_4(net.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "t.txt").write_text(TEMPLATE)
    (tmp_path / "bad.txt").write_text(TEMPLATE.replace("<|MQ_reward|>", ""))
    spec: dict[str, Any] = {"use": "videoreward", "model": str(tmp_path), "base": str(base), "template": "t.txt"}
    with pytest.raises(UsageError, match=r"knows 20 words, but the tokenizer of .* are \d+"):
        build_reward(spec, tmp_path)(prompts(1), Media(video=Track(torch.rand(1, 4, 3, 56, 56), rate=2.0)))
    with pytest.raises(UsageError, match=r"lacks <\|MQ_reward\|>"):
        build_reward({**spec, "template": "bad.txt"}, tmp_path)
    (tmp_path / "t.py").write_text("OTHER = 'x'")
    with pytest.raises(UsageError, match="no constant 'NAME'"):
        build_reward({**spec, "template": "t.py:NAME"}, tmp_path)
    with pytest.raises(UsageError, match="no dtype 'float16'"):
        build_reward({**spec, "dtype": "float16"}, tmp_path)
    with pytest.raises(UsageError, match=r"needs the setting 'model'; to get its weights: .*KwaiVGI/VideoReward"):
        build_reward("videoreward", tmp_path)
