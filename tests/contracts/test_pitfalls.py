"""Situations of docs/pitfalls.md, each tried with valid input; the right value comes from outside genalign.

A test that is expected to fail is a row that the page calls open: it is strict, so that whoever mends it moves the row.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from PIL import Image

from genalign.cli.main import main
from genalign.data.comparisons import read_comparisons
from genalign.data.preferences import find_pairs
from genalign.data.prompts import read_prompts
from genalign.files.places import data_path
from genalign.method.losses import advantages
from genalign.policy import load_policy
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.reward import reward
from genalign.reward.base import ScoringError
from genalign.reward.judge.asking import Question
from genalign.reward.judge.endpoint import Endpoint
from genalign.reward.judge.reading import read_score, read_scores
from genalign.run.build import build
from genalign.run.folder import run_folder
from genalign.run.recipe import load_recipe
from genalign.types import Media, Prompt, Scores, Track, UsageError
from tests.contracts.tree import ROOT
from tests.helpers.tiny_language import CHAT, tiny_language
from tests.helpers.tiny_pipelines import clip_text
from tests.helpers.tiny_recipe import image_model, write_recipe
from tests.helpers.toy_judges import Scripted, said, serving

PAGE = ROOT / "docs" / "pitfalls.md"
TWO = [Prompt("draw me a star", uid=0), Prompt("hello", uid=1)]
NUMBERS = torch.tensor([[1, 5, 6, 7]])  # token ids of the tiny language model


def opens(reason: str) -> pytest.MarkDecorator:
    """A row of the page that is open."""
    return pytest.mark.xfail(strict=True, reason=reason)


def language(prepare: Callable[[Any, Any], None] | None = None, **settings: Any) -> LanguagePolicy:
    model, tokenizer = tiny_language()
    if prepare is not None:
        prepare(model, tokenizer)
    chosen = {"model": "tiny", "lora": Lora(rank=4), "batch_size": 4, "max_new_tokens": 8, **settings}
    torch.manual_seed(0)
    return LanguagePolicy(model, tokenizer, PolicySettings(**chosen))


def pictures(folder: Path | None = None, guidance: float = 1.0, steps: int = 3, **settings: Any) -> Any:
    """The tiny random pipeline of 16-pixel pictures, or that of `folder`, as a policy."""
    sampler = Sampler(kernel="ddim", noise=1.0, steps=steps, guidance=guidance)
    place = folder or image_model()
    chosen = {"model": str(place), "lora": Lora(rank=2, alpha=4), "sampler": sampler, "batch_size": 2, **settings}
    return load_policy(PolicySettings(**chosen), place)


def with_scheduler(folder: Path, kind: str, **config: Any) -> Path:
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(image_model())
    pipeline.scheduler = getattr(diffusers, kind).from_config({**pipeline.scheduler.config, **config})
    pipeline.save_pretrained(folder)
    return folder


def disturb(policy: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.named_trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


# ---- the page -------------------------------------------------------------------------------------------------------


def test_every_row_of_the_page_has_a_state_and_a_public_report():
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 20
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 6, row
        assert cells[4] in ("works", "refused in a sentence", "mended", "open"), row
        assert re.search(r"[\w.-]+/[\w.-]+#\d+", cells[5]), row


def test_the_page_calls_open_what_is_expected_to_fail():
    """Each open row is named by exactly one reason here, `row N`, and no other row is."""
    expected = sorted(set(map(int, re.findall(r"@opens\(\"row (\d+)", Path(__file__).read_text()))))
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert expected == [int(row.split("|")[1]) for row in rows if "| open |" in row]


# ---- files that people write ----------------------------------------------------------------------------------------


def test_windows_line_ends_and_prompts_of_several_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "two"}\r\n\r\n{"prompt": "a\\nb"}\r\n')
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.jsonl")] == ["two", "a\nb"]
    (tmp_path / "a.csv").write_bytes(b'prompt,chosen,rejected\r\nq,"x\r\nz",y\r\n')
    assert [item.value for item in read_comparisons(tmp_path / "a.csv").items] == ["x\r\nz", "y"]


def test_the_same_prompt_twice_is_two_groups_with_samples_of_their_own(tmp_path):
    (tmp_path / "a.txt").write_text("hello\nhello\n")
    prompts = list(read_prompts(tmp_path / "a.txt"))
    drawn = language().rollout(prompts, 2, 0)
    assert drawn.group.tolist() == [0, 0, 1, 1]
    assert len(set(drawn.seeds)) == 4


def test_a_picture_of_absurd_size_is_refused(tmp_path):
    """Pillow's own limit; the file claims 20,000 x 20,000 pixels in 60 bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "image": "a.png"}')
    with pytest.raises(UsageError, match=r"a\.png"):
        read_prompts(tmp_path / "a.jsonl")


def test_a_prompt_file_in_the_cache_of_the_hub(tmp_path):
    """huggingface_hub: snapshots/REVISION/NAME is a link to blobs/HASH, which has no suffix."""
    for folder in ("blobs", "snapshots"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blobs" / "0123abcd").write_text('{"prompt": "two"}\n')
    (tmp_path / "snapshots" / "train.jsonl").symlink_to("../blobs/0123abcd")
    assert [prompt.text for prompt in read_prompts(data_path("train.jsonl", tmp_path / "snapshots"))] == ["two"]


@pytest.mark.parametrize("rating", ["NaN", "Infinity"])
def test_a_rating_that_is_not_finite_is_refused(tmp_path, rating):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "q", "text": "x", "rating": {rating}}}\n')
    with pytest.raises(UsageError, match="1 of"):
        read_comparisons(tmp_path / "a.jsonl")


@pytest.mark.parametrize("marks", ['"label_0": NaN, "label_1": 1', '"label_0": 1, "label_1": NaN'])
def test_a_preference_that_is_not_a_number_is_refused(tmp_path, marks):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    (tmp_path / "a.jsonl").write_text(f'{{"caption": "q", "jpg_0": "a.png", "jpg_1": "b.png", {marks}}}\n')
    with pytest.raises(UsageError, match="1 of"):
        find_pairs(tmp_path / "a.jsonl")


def test_a_long_cell_of_a_csv_file_is_read_or_refused(tmp_path):
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\nq,{'x' * 200_000},y\n")
    try:
        found = read_comparisons(tmp_path / "a.csv")
    except UsageError:
        return
    assert len(found.items[0].value) == 200_000


def test_a_table_that_was_copied_is_the_same_data(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = {}
    for name, colour in (("chosen", "red"), ("rejected", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
        cells[name] = {"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_list([{"prompt": "q", **cells}]).to_parquet(tmp_path / "table" / "0.parquet")
    before = find_pairs(tmp_path / "table").digest
    os.utime(tmp_path / "table" / "0.parquet", (1, 1))
    assert find_pairs(tmp_path / "table").digest == before


def test_a_recipe_is_utf_8_whatever_the_locale(tmp_path):
    """YAML 1.2, 5.2: a processor must read UTF-8."""
    (tmp_path / "a.yaml").write_bytes("name: café\n".encode())
    code = "from genalign.files.settings import read_yaml; from pathlib import Path; import sys; "
    code += "sys.stdout.buffer.write(read_yaml(Path(sys.argv[1]))['name'].encode())"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.yaml")], env=env, capture_output=True)
    assert ran.returncode == 0, ran.stderr[-200:]
    assert ran.stdout == "café".encode()


# ---- language models ------------------------------------------------------------------------------------------------


def test_logp_is_that_of_the_distribution_at_the_temperature():
    policy = language(temperature=0.6)
    drawn = policy.rollout(TWO[:1], 1, 0)
    ids = torch.tensor([drawn.tape.prompt[0] + drawn.tape.completion[0]])
    with torch.no_grad():
        logits = policy.model(ids).logits[0].double() / 0.6
    start = len(drawn.tape.prompt[0])
    for step, token in enumerate(drawn.tape.completion[0]):
        expected = logits[start + step - 1].log_softmax(-1)[token].item()
        assert drawn.logp[0, step].item() == pytest.approx(expected, abs=1e-5)


def test_the_end_is_learned_where_it_is_also_the_padding():
    def same(model: Any, tokenizer: Any) -> None:
        tokenizer.pad_token = tokenizer.eos_token

    drawn = language(same).rollout(TWO, 8, 0)
    ended = [row for row, completion in enumerate(drawn.tape.completion) if completion[-1] == 2]
    assert ended
    for row in ended:
        last = len(drawn.tape.completion[row]) - 1
        assert drawn.mask[row, last]
        assert drawn.logp[row, last] < 0


def test_a_tokenizer_without_padding_and_batches_of_any_size_draw_the_same():
    def without(model: Any, tokenizer: Any) -> None:
        tokenizer.pad_token = None
        model.config.pad_token_id = model.generation_config.pad_token_id = None

    texts = [language(change, batch_size=size).rollout(TWO, 2, 0).media["text"].data
             for change in (None, without) for size in (1, 4)]  # fmt: skip
    assert texts.count(texts[0]) == 4


def test_the_generation_settings_of_a_model_do_not_bend_its_samples():
    def bent(model: Any, tokenizer: Any) -> None:
        model.generation_config.repetition_penalty = 1.5
        model.generation_config.min_new_tokens = 4

    plain, drawn = (language(change).rollout(TWO, 4, 0) for change in (None, bent))
    assert drawn.tape.completion == plain.tape.completion
    assert torch.equal(drawn.logp, plain.logp)


def test_completions_of_one_token_and_of_none():
    assert [len(completion) for completion in language(max_new_tokens=1).rollout(TWO, 2, 0).tape.completion] == [1] * 4

    def ends_at_once(model: Any, tokenizer: Any) -> None:
        model.lm_head.weight.data.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
        model.lm_head.bias.data[2] = 50.0

    policy = language(ends_at_once)
    drawn = policy.rollout(TWO, 2, 0)
    assert drawn.media["text"].data == [""] * 4
    assert torch.equal(policy.replay(drawn, [0, 1, 2, 3]).score, drawn.logp)
    assert drawn.logp.isfinite().all()


def test_every_end_that_a_model_names_ends_a_completion():
    def ends(model: Any, tokenizer: Any) -> None:
        model.generation_config.eos_token_id = [2, 7, 9]

    drawn = language(ends).rollout(TWO, 8, 0)
    plain = language().rollout(TWO, 8, 0)
    assert any({7, 9} & set(completion) for completion in plain.tape.completion)
    for completion, longer in zip(drawn.tape.completion, plain.tape.completion, strict=True):
        first = next((at for at, token in enumerate(longer) if token in (2, 7, 9)), len(longer) - 1)
        assert completion == longer[: first + 1]


def test_a_prompt_without_a_template_begins_as_its_tokenizer_begins():
    drawn = language().rollout(TWO, 1, 0)
    assert [prompt[0] for prompt in drawn.tape.prompt] == [1, 1]


def test_chat_templates_with_names_are_chosen_from_or_refused():
    def named(model: Any, tokenizer: Any) -> None:
        tokenizer.chat_template = {"rag": CHAT, "tool_use": CHAT}

    with pytest.raises(UsageError, match="tool_use"):
        language(named).rollout(TWO, 1, 0)


@pytest.mark.parametrize("template", [None, CHAT])
def test_control_tokens_in_a_prompt_are_text(template):
    """transformers' own split_special_tokens: user text never becomes a control token, and nothing else changes."""

    def templated(model, tokenizer):
        tokenizer.chat_template = template

    policy, words = language(templated), tiny_language()[1]
    encoded = policy.chat.encode(Prompt("hello <eos> star"))
    assert 2 not in encoded.ids
    inside = words("hello <eos> star", add_special_tokens=False, split_special_tokens=True).input_ids
    whole = encoded.ids
    assert any(list(whole[i : i + len(inside)]) == inside for i in range(len(whole)))
    plain = policy.chat.encode(Prompt("hello star"))
    around = [i for i in whole if i not in inside]
    assert around == [i for i in plain.ids if i not in words("hello star", add_special_tokens=False).input_ids]
    policy.rollout([Prompt("hello <eos> star")], 1, 0)


def gpt2() -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    _, tokenizer = tiny_language()
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer


def adapted(model: Any, tokenizer: Any, targets: Any) -> set[str]:
    settings = PolicySettings(model="tiny", lora=Lora(rank=2, targets=targets), max_new_tokens=4)
    return {name.rsplit(".lora_", 1)[0] for name in LanguagePolicy(model, tokenizer, settings).named_trainable()}


def as_peft_would(model: Any) -> set[str]:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    names = [name for name, _ in wrapped.named_parameters() if ".lora_A." in name]
    return {name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in names}


@pytest.mark.parametrize("make", [tiny_language, gpt2])
def test_all_linear_is_what_peft_calls_so(make):
    assert adapted(*make(), "all-linear") == as_peft_would(make()[0])


def test_every_projection_of_attention_is_adapted_where_they_are_one_layer():
    """transformers' own modules: all linear layers of Phi-3's attention, as those of Llama's are adapted."""
    from transformers import Phi3Config, Phi3ForCausalLM

    _, tokenizer = tiny_language()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Phi3ForCausalLM(Phi3Config(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, **sizes)).eval()
    attention = {f"model.layers.0.self_attn.{name}" for name, _ in model.model.layers[0].self_attn.named_children()}
    assert len(attention) == 2
    assert adapted(model, tokenizer, None) == attention


def test_an_adapter_is_loaded_at_its_own_strength_or_refused(tmp_path):
    """LoRA (Hu et al. 2021): the update counts alpha / rank."""
    written, read = language(lora=Lora(rank=4, alpha=32)), language(lora=Lora(rank=4, alpha=4))
    disturb(written)
    written.save_adapter(tmp_path / "adapter")
    try:
        read.load_adapter(tmp_path / "adapter")
    except UsageError:
        return
    with torch.no_grad():
        torch.testing.assert_close(read.model(NUMBERS).logits, written.model(NUMBERS).logits)


# ---- pipelines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("DDIMScheduler", {"trained_betas": [0.01] * 1000}),
    ],
)
def test_generate_is_the_pipeline_itself(tmp_path, kind, config):
    """In 4 steps, which divide the 1000 of training: else DDIM's own steps end beside the next time of its list."""
    import diffusers

    folder = with_scheduler(tmp_path / "model", kind, timestep_spacing="trailing", **config)
    made = pictures(folder, steps=4).generate(TWO, [0, 1])["image"].data
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    texts = [prompt.text for prompt in TWO]
    expected = pipeline(texts, num_inference_steps=4, guidance_scale=1.0, generator=generators, output_type="pt").images
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_rescaled_guidance_is_replayed():
    policy = pictures(guidance=3.0, call={"guidance_rescale": 0.7})
    drawn = policy.rollout(TWO, 1, 0)
    torch.testing.assert_close(policy.replay(drawn, [0, 1]).score, drawn.logp, atol=1e-5, rtol=0)


def test_an_argument_that_the_installed_libraries_cannot_serve_is_refused():
    """clip_skip reads CLIPTextModel.text_model, which transformers 5 dropped; where it is served, it is replayed."""
    policy = pictures(call={"clip_skip": 1})
    if not hasattr(clip_text(), "text_model"):
        with pytest.raises(UsageError, match="clip_skip"):
            policy.rollout(TWO, 1, 0)
    else:
        drawn = policy.rollout(TWO, 1, 0)
        torch.testing.assert_close(policy.replay(drawn, [0, 1]).score, drawn.logp, atol=1e-5, rtol=0)


def test_as_many_steps_as_training_had_with_an_offset(tmp_path):
    policy = pictures(with_scheduler(tmp_path / "model", "DDIMScheduler", steps_offset=1))
    with pytest.raises(UsageError, match="steps"):
        policy.generate(TWO, [0, 1], steps=1000)


def test_more_steps_than_training_had():
    policy = pictures()
    with pytest.raises(UsageError, match="steps"):
        policy.generate(TWO, [0, 1], steps=2000)


def test_a_height_alone_counts_or_is_refused():
    try:
        made = pictures(call={"height": 32}).generate(TWO[:1], [0])["image"].data
    except UsageError:
        return
    assert made.shape[-2] == 32


@pytest.mark.parametrize("scale", [-3.0, 0.5])
def test_a_guidance_scale_that_pipelines_ignore_is_refused(scale):
    """e = e_u + s (e_c - e_u) for every s, so it is neither 1 nor 0, which some write for none."""
    policy = pictures()
    with pytest.raises(UsageError, match=f"guidance {scale:g} is below 1"):
        policy.generate(TWO[:1], [0], guidance=scale)
    none, zero = (policy.generate(TWO[:1], [0], guidance=scale)["image"].data for scale in (1.0, 0.0))
    assert torch.equal(none, zero)


# ---- rewards and judges ---------------------------------------------------------------------------------------------


def test_one_score_for_many_samples_is_a_failure():
    @reward
    def lazy(text):
        return [1.0]

    with pytest.raises(ScoringError, match="3"):
        lazy._read(lazy.function(["a", "b", "c"]), 3, None)


@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
def test_a_reward_that_abstains_leaves_the_advantages_of_others_finite(rule):
    """GRPO on the rows that were scored alone, by hand."""
    values = torch.tensor([[1.0], [0.0], [3.0], [2.0]])
    valid = torch.tensor([[True], [False], [True], [True]])
    total = torch.where(valid, values, 0.0)[:, 0]
    scores = Scores(("r",), values, valid, torch.zeros_like(valid), total, valid[:, 0], torch.ones(1))
    advantage, counted, log = advantages(scores, torch.zeros(4, dtype=torch.long), rule)
    assert counted.tolist() == [True, False, True, True]
    expected = [-1.0, 0.0, 1.0, 0.0]  # (x - 2) / 1: mean and unbiased std of 1, 3 and 2
    assert advantage.tolist() == pytest.approx(expected, abs=1e-6)
    assert all(math.isfinite(number) for number in log.values())


def test_json_of_a_judge_in_a_fence_after_its_thoughts():
    assert read_score('<think>score: 2?</think>\n```json\n{"score": 4}\n```', 1, 5) == 4
    told = '<think>{"scores": {"A": 1, "B": 1}}</think>\n```json\n{"scores": {"A": 4, "B": 2}}\n```'
    assert read_scores(told, ["A", "B"], 1, 5) == [4, 2]


@pytest.mark.parametrize(("text", "low", "high"), [("Score: 4 out of 5", 1, 10), ("Score: 1e-2", 0, 1)])
def test_a_score_out_of_another_maximum_is_refused(text, low, high):
    try:
        number = read_score(text, low, high)
    except ScoringError:
        return
    assert number == pytest.approx(0.01)


def asked(answer: Callable[..., Any], **settings: Any) -> Any:
    with serving(Scripted(answer).app) as url:
        endpoint = Endpoint(f"{url}/v1", "judge", retries=1, pause=0.01, timeout=10, **settings)
        return endpoint.write([Question(("how good?",))], [0], 16, 0.0)[0]


def test_a_busy_endpoint_is_waited_for_as_it_asks():
    at: list[float] = []

    def answer(body: Any, number: int) -> Any:
        at.append(time.monotonic())
        busy = JSONResponse({"error": "busy"}, status_code=429, headers={"retry-after": "1"})
        return busy if number == 0 else said("Score: 4")

    assert asked(answer) == "Score: 4"
    assert at[1] - at[0] >= 0.99


def test_an_answer_that_is_thought_alone_is_a_failure():
    answer = asked(lambda *_: {"choices": [{"message": {"content": None, "reasoning_content": "Score: 2"}}]})
    assert isinstance(answer, ScoringError)
    assert "empty" in str(answer)


def test_an_answer_in_parts_is_its_text():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Score: 2?"}]},
        {"type": "text", "text": "Score: 4"},
    ]
    choice = {"message": {"role": "assistant", "content": parts}, "finish_reason": "stop"}
    assert asked(lambda *_: {"choices": [choice]}) == "Score: 4"


def test_an_error_with_status_200_is_told():
    answer = asked(lambda *_: {"choices": None, "error": {"code": 429, "message": "Too Many Requests"}})
    assert isinstance(answer, ScoringError)
    assert "Too Many Requests" in str(answer)


def test_an_endpoint_that_has_moved_is_refused():
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def moved() -> JSONResponse:
        return JSONResponse({}, status_code=308, headers={"location": "/v2/chat/completions"})

    with serving(app) as url:
        (answer,) = Endpoint(f"{url}/v1", "judge", retries=0).write([Question(("q",))], [0], 16, 0.0)
    assert isinstance(answer, ScoringError)
    assert "308" in str(answer)


def test_scores_as_numpy_and_pandas_make_them():
    """TRL reads them one by one: [r if r is not None else nan for r in rewards]."""
    import numpy as np

    @reward
    def column(text):
        return np.array([0.5, None], dtype=object)

    scores = column([Prompt("a"), Prompt("b")], Media(text=Track(["x", "y"])))
    assert scores.valid[:, 0].tolist() == [True, False]
    assert scores.failed.any().item() is False


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_seed_of_64_bits(tmp_path):
    """ComfyUI's seeds reach 2**64 - 1."""
    recipe = load_recipe(write_recipe(tmp_path), [f"train.seed={2**64 - 1}"])
    assert build(recipe).policy.modalities


def test_samples_of_the_largest_seed(tmp_path, capsys):
    words = ["sample", str(image_model()), "two", "--steps", "2", "--seed", str(2**64 - 1), "--n", "2"]
    code = main([*words, "--out", str(tmp_path / "out")])
    assert "debug" not in capsys.readouterr().err
    assert code in (0, 2)


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    recipe = load_recipe(write_recipe(tmp_path / "recipe"))
    first = run_folder(recipe, None, None, ExitStack())
    try:
        second = run_folder(recipe, None, None, ExitStack())
    except UsageError:
        return
    assert first != second


def test_a_home_in_an_option_is_the_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["sample", str(image_model()), "two", "--steps", "1", "--out", "~/x"]) == 0
    assert (tmp_path / "home" / "x" / "00000.png").is_file()


def test_a_prompt_that_begins_with_a_dash(tmp_path):
    """POSIX, 12.2, guideline 10."""
    words = ["sample", str(image_model()), "--steps", "1", "--out", str(tmp_path / "out"), "--", "-star"]
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "samples.jsonl").read_text())["prompt"] == "-star"


def test_a_prompt_behind_the_options(tmp_path):
    """POSIX, 12.1: operands follow options."""
    words = ["sample", str(image_model()), "--steps", "1", "--out", str(tmp_path / "out"), "two"]
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "samples.jsonl").read_text())["prompt"] == "two"


def test_a_prompt_with_a_dash_and_blanks_and_one_of_two_lines(tmp_path):
    for number, text in enumerate(("-a red star", "two\nlines")):
        out = tmp_path / str(number)
        assert main(["sample", str(image_model()), text, "--steps", "1", "--out", str(out)]) == 0
        assert json.loads((out / "samples.jsonl").read_text())["prompt"] == text


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Within the context files of this process end at `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_half_picture(tmp_path, capsys):
    words = ["sample", str(image_model()), "two", "--steps", "1", "--out", str(tmp_path / "out")]
    with full_disk(300):
        code = main(words)
    assert code in (1, 2)
    assert "debug" not in capsys.readouterr().err
    assert not (tmp_path / "out" / "00000.png").exists()


def test_a_full_disk_while_training_is_told(tmp_path, capsys):
    """The checkpoint is larger than what fits; the sentence names it, and nothing that looks whole stays."""
    recipe = write_recipe(tmp_path / "recipe", eval=None)
    with full_disk(4000):
        code = main(["train", str(recipe), "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert code == 1
    assert "checkpoint-1" in told
    assert "free space" in told
    assert not (tmp_path / "run" / "checkpoint-1").exists()


@pytest.mark.parametrize("score", ["None", "None if image.mean() < 0.5 else 1.0"])
def test_metrics_are_json_for_every_reader_where_rewards_abstain(tmp_path, score):
    """RFC 8259 knows no NaN."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    recipe = write_recipe(tmp_path / "recipe", eval=None, reward="sometimes.py:sometimes")
    rule = f"@reward\ndef sometimes(images):\n    return [{score} for image in images]\n"
    (tmp_path / "recipe" / "sometimes.py").write_text(f"from genalign.reward import reward\n\n{rule}")
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "train.steps=1"]) == 0
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["rewards/sometimes/abstain_rate"] > 0


def test_a_finished_run_that_is_resumed_is_only_reported_again(tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe", eval=None)
    words = ["train", str(recipe), "train.steps=1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    adapter = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert main([*words, "--resume", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_a_run_that_stopped_early_stays_stopped(tmp_path, capsys):
    """A constant reward is no better at the second checkpoint than at the first."""
    recipe = write_recipe(tmp_path / "recipe", eval=None, reward="constant.py:constant")
    rule = "@reward\ndef constant(images):\n    return [1.0 for _ in images]\n"
    (tmp_path / "recipe" / "constant.py").write_text(f"from genalign.reward import reward\n\n{rule}")
    words = ["train", str(recipe), "train.steps=4", "train.patience=1", "train.keep_checkpoints=2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert before.count(b"\n") == 2
    assert main([*words, "--resume", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_there_need_be_no_home(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/proc/nowhere"}
    words = ["-m", "genalign", "sample", str(image_model()), "two", "--steps", "1", "--out", str(tmp_path / "out")]
    ran = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "00000.png").is_file()


@pytest.mark.slow
def test_a_killed_run_takes_its_worker_along(tmp_path):
    rule = "import os, time\nfrom genalign.reward import reward\n\n@reward\ndef sleeps(text):\n"
    rule += f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n    time.sleep(60)\n    return [1.0]\n"
    (tmp_path / "rules.py").write_text(rule)
    code = "import sys; from pathlib import Path; from genalign import Media, Prompt, Track, build_reward; "
    code += "build_reward('rules.py:sleeps', Path(sys.argv[1]))([Prompt('q')], Media(text=Track(['x'])))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=env)
    try:
        deadline = time.monotonic() + 120
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        worker = int((tmp_path / "pid").read_text())
        run.send_signal(signal.SIGTERM)
        run.wait(30)
        try:
            gone = time.monotonic() + 10
            while Path(f"/proc/{worker}").exists():
                assert time.monotonic() < gone
                time.sleep(0.1)
        finally:
            if Path(f"/proc/{worker}").exists():
                os.kill(worker, signal.SIGKILL)
    finally:
        run.kill()
