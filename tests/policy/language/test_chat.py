"""Prompts become tokens as transformers makes them, and sampled tokens the text that a format rule needs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from genalign.policy import load_policy
from genalign.policy.language import LanguagePolicy
from genalign.policy.language.chat import Chat
from genalign.policy.settings import Lora, PolicySettings
from genalign.reward.heads.rules import Format
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.tiny_language import tiny_language

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Qwen3: earlier thoughts are dropped, the last answer gets an empty block, and thinking can be switched off.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Qwen3-Thinking-2507: as QWEN3, but thinking is always on and opened for the model.
QWEN3_THINKING = (
    QWEN3.partition("{% endfor %}")[0]
    + THINKING.partition("{% endfor %}")[1]
    + ("{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
)
ADDED = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>"]


def parts(jinja: str | None = None, special: bool = True):
    """A tiny Llama and its tokenizer, whose vocabulary holds the marks of turns and the tags of answers."""
    model, tokenizer = tiny_language()
    tokenizer.add_tokens(ADDED, special_tokens=True)
    tokenizer.add_tokens(TAGS, special_tokens=special)
    tokenizer.add_tokens(["assistant", "model"])
    tokenizer.chat_template = jinja
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return model, tokenizer


def settings(**keys) -> PolicySettings:
    return PolicySettings(**{"model": "tiny", "lora": Lora(rank=4), "max_new_tokens": 8, "batch_size": 4, **keys})


def policy(jinja: str | None = None, special: bool = True, **keys) -> LanguagePolicy:
    return LanguagePolicy(*parts(jinja, special), settings(**keys))


def chat(jinja: str | None, **keys) -> Chat:
    model, tokenizer = parts(jinja)
    ends = {*model.generation_config.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    return Chat(tokenizer, settings(**keys), ends, len(tokenizer))


def ids_of(made: Chat, text: str) -> list[int]:
    return made.tokenizer.convert_tokens_to_ids(text.split())


# ---- what rewards read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
def test_tags_stay_and_only_ends_beginnings_and_padding_are_cut(special):
    made = policy(CHATML, special).chat
    sampled = "<think> one </think> <answer> two </answer> <tool_call> star </tool_call> <unk> <|im_end|>"
    text = made.text(made.encode(Prompt("hello")), ids_of(made, f"<bos> {sampled.replace('one', '<pad> one')}"))
    assert text == "<think> one </think> <answer> two </answer> <tool_call> star </tool_call> <unk>"
    assert made.text(made.encode(Prompt("hello")), ids_of(made, "<eos>")) == ""


def test_a_format_rule_scores_completions_by_their_tags():
    rewards = pytest.importorskip("trl.rewards")
    for template, start in ((CHATML, "<think> "), (THINKING, "")):
        made = policy(template).chat
        good, bad = f"{start}one </think> two <|im_end|>", f"{start}one two <|im_end|>"
        texts = [made.text(made.encode(Prompt("hello")), ids_of(made, text)) for text in (good, bad)]
        assert rewards.think_format_reward([[{"content": text}] for text in texts]) == [1.0, 0.0]
    made = policy(THINKING).chat
    text = made.text(made.encode(Prompt("hello")), ids_of(made, "one </think> <answer> two </answer> <|im_end|>"))
    assert text == "<think>\none </think> <answer> two </answer>"
    scores = Format(tags=["think", "answer"])([Prompt("hello")], Media(text=Track([text])))
    assert scores.values.tolist() == [[1.0]]


@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_rollout_and_generate_show_the_opening_and_densities_cover_sampled_tokens_alone(template):
    made = policy(template)
    opening = "<think>\n" if template == THINKING else ""
    prompts = [Prompt("draw a star", uid=0), Prompt("hello", uid=1)]
    trajectory = made.rollout(prompts, 3, 0)
    names = made.tokenizer.convert_ids_to_tokens
    for row, completion in enumerate(trajectory.tape.completion):
        written = [name for name in names(list(completion)) if name not in ("<bos>", "<eos>", "<pad>", "<|im_end|>")]
        assert trajectory.media["text"].data[row] == opening + " ".join(written)
        assert names(list(trajectory.tape.prompt[row]))[-1] == ("<think>" if opening else "assistant")
        assert trajectory.mask[row].sum() == len(completion)
    assert all(text.startswith(opening) for text in made.generate(prompts, [0, 0])["text"].data)


OPENED = {
    "chatml": (CHATML, ""),
    "thinking": (THINKING, "<think>\n"),
    "no generation prompt": ("{% for m in messages %}{{ m.content }}{% endfor %}", ""),
    "written whatever is asked": (THINKING.replace("{% if add_generation_prompt %}", "{% if true %}"), "<think>\n"),
    "before every answer": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '<think>\n' if m.role == 'assistant' }}{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        "<think>\n",
    ),
    "gemma": (GEMMA, ""),
    "gemma, thinking": (GEMMA.replace("model\n{% endif", "model\n<think>\n{% endif"), "<think>\n"),
    "qwen3": (QWEN3, ""),
    "qwen3, thinking only": (QWEN3_THINKING, "<think>\n"),
    "closed by its template": (  # DeepSeek V3.1 without thinking
        CHATML.replace("assistant\n{% endif %}", "assistant\n</think>{% endif %}"), "",
    ),
    "two tags": (
        CHATML.replace("assistant\n{% endif %}", "assistant\n<reason>\n<think>{% endif %}"), "<reason>\n<think>",
    ),
    "words behind it": (
        CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\nOkay, {% endif %}"), "<think>\nOkay, ",
    ),
    "words before it": (
        CHATML.replace("assistant\n{% endif %}", "assistant\nStep by step:\n<think>{% endif %}"), "<think>",
    ),
    "turns in tags": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        "",
    ),
    "no template": (None, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("question", ["draw a star ", "is <think> a tag <think>", "think", "a", "</think>", ""])
def test_what_a_template_opened_begins_the_text(name, question):
    template, opening = OPENED[name]
    if question or name != "no generation prompt":  # which would leave nothing to read
        assert chat(template).encode(Prompt(question)).opening == opening


def test_an_empty_block_of_thoughts_is_not_part_of_the_text():
    made = policy(QWEN3, template={"enable_thinking": False}).chat
    encoded = made.encode(Prompt("hello"))
    assert made.tokenizer.convert_ids_to_tokens(list(encoded.ids))[-3:] == ["assistant", "<think>", "</think>"]
    assert made.text(encoded, ids_of(made, "two <|im_end|>")) == "two"


REASONING = {  # by the models' cards: whether thinking is opened for the model by default
    "deepseek_r1_distill": "<think>\n", "deepseekv3": "<think>\n", "nemotron_3_nano": "<think>\n",
    "qwen3": "", "qwen3_5_think": "<think>\n", "qwen3_5_nothink": "", "qwen3_6": "<think>\n",
    "qwen2_5": "", "gemma": "", "gemma3": "", "llama3_2": "", "phi3": "", "gptoss": "", "glm4moe": "", "cohere2": "",
}  # fmt: skip


@pytest.mark.parametrize("family", REASONING)
def test_templates_of_published_models(family):
    """Oracle: the files that TRL keeps of the models' own templates."""
    trl = pytest.importorskip("trl")
    file = Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja"
    if not file.is_file():
        pytest.skip("this TRL does not carry that template")
    made = chat(file.read_text())
    assert made.encode(Prompt("draw a star")).opening == REASONING[family]
    if family.startswith(("qwen3_5", "qwen3_6", "nemotron")):
        for thinks, opening in ((True, "<think>\n"), (False, "")):
            assert (
                chat(file.read_text(), template={"enable_thinking": thinks}).encode(Prompt("hello")).opening == opening
            )


# ---- how prompts become tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, CHATML, THINKING, QWEN3, GEMMA])
def test_prompts_are_the_tokens_of_transformers(template):
    made = chat(template)
    expected = (
        made.tokenizer("draw a star").input_ids
        if template is None
        else made.tokenizer.apply_chat_template(
            [{"role": "user", "content": "draw a star"}], add_generation_prompt=True, return_dict=False
        )
    )
    assert list(made.encode(Prompt("draw a star")).ids) == expected


@pytest.mark.parametrize("template", [None, GEMMA, "{{ bos_token }}" + GEMMA])
def test_a_prompt_has_one_beginning(template):
    made = chat(template)  # its tokenizer puts one before every text
    assert made.tokenizer("hello").input_ids[0] == 1
    assert made.encode(Prompt("draw a star")).ids.count(1) == 1
    if template is None:
        assert made.encode(Prompt("<bos> draw a star")).ids == made.encode(Prompt("draw a star")).ids
        made.tokenizer.backend_tokenizer.post_processor = None
        assert made.encode(Prompt("draw a star")).ids.count(1) == 0
        assert made.encode(Prompt("<bos> draw a star")).ids.count(1) == 1


def test_a_plain_prompt_is_what_its_tokenizer_writes():
    """An end token behind it stays: the shipped expander was trained on <start> prompt <end> answer <end>."""
    from tokenizers import processors

    made = chat(None)
    made.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    written = list(made.encode(Prompt("hello star")).ids)
    assert written == made.tokenizer("hello star").input_ids
    assert made.tokenizer.convert_ids_to_tokens(written) == ["<bos>", "hello", "star", "<eos>"]


def test_template_arguments_reach_the_template():
    expected = {None: 0, True: 0, False: 1}
    for thinks, blocks in expected.items():
        made = chat(QWEN3, template={} if thinks is None else {"enable_thinking": thinks})
        assert made.tokenizer.convert_ids_to_tokens(list(made.encode(Prompt("hello")).ids)).count("</think>") == blocks
    assert chat(QWEN3, template={"unread": 1}).encode(Prompt("hello")) == chat(QWEN3).encode(Prompt("hello"))
    off, on = ({"enable_thinking": value} for value in (False, True))
    digests = [policy(QWEN3, template=given).digest()["sampler"] for given in ({}, on, off)]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("template", "given", "message"),
    [
        (None, {"enable_thinking": False}, "policy.template is set, but the model's tokenizer has no chat template"),
        (CHATML, {"tokenize": False}, "policy.template.tokenize is genalign's own"),
        (CHATML, {"messages": []}, "policy.template.messages is genalign's own"),
        (CHATML, {"add_generation_prompt": False}, "policy.template.add_generation_prompt is genalign's own"),
    ],
)
def test_template_arguments_that_cannot_be(template, given, message):
    with pytest.raises(UsageError, match=message):
        policy(template, template=given)


SILENT = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [GEMMA, SILENT, GEMMA.replace("System role not supported", "")])
def test_a_template_without_a_system_turn_is_one_sentence_before_anything_is_sampled(template):
    with pytest.raises(UsageError, match=r"chat template takes no system turn .*; remove policy.system"):
        policy(template, system="be brief")
    policy(template).rollout([Prompt("hello")], 1, 0)


def test_a_system_turn_where_the_template_has_one():
    assert "how many" in chat(CHATML, system="how many").tokenizer.decode(
        chat(CHATML, system="how many").encode(Prompt("hello")).ids
    )
    default = "{% if messages[0].role != 'system' %}how many{% endif %}" + CHATML
    chat(default, system="how many")  # what it writes anyway
    made = chat(None, system="how many")
    assert list(made.encode(Prompt("a star")).ids) == made.tokenizer("how many\na star").input_ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only tools') }}", r"writes no prompt \(only tools\)"),
        ("{% for m in messages %}{{ m.content.nothing.there }}{% endfor %}", "writes no prompt"),
        ("{% for m in messages %}{{ m.content + 3 }}{% endfor %}", "writes no prompt"),
        ("{% for m in messages %}{% if %}{% endfor %}", "writes no prompt"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", "leaves out the text"),
    ],
)
def test_templates_that_write_no_prompt_are_one_sentence(template, message):
    with pytest.raises(UsageError, match=message):
        policy(template)


def test_a_token_that_the_model_has_no_row_for_is_one_sentence():
    model, tokenizer = parts(CHATML)
    tokenizer.add_tokens(["<late>"])
    made = LanguagePolicy(model, tokenizer, settings())
    with pytest.raises(UsageError, match=r"has the token '<late>' \(id \d+\), but the model knows \d+ tokens only"):
        made.rollout([Prompt("draw <late>")], 1, 0)
    made.rollout([Prompt("draw")], 1, 0)


# ---- turns' ends ----------------------------------------------------------------------------------------------------


def warnings(caplog, template: str | None, ends: list[str]) -> str:
    model, tokenizer = parts(template)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<eos>", *ends])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        LanguagePolicy(model, tokenizer, settings())
    return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("genalign"))


def test_a_turn_end_that_ends_nothing_is_warned_of(caplog):
    for template, token in ((CHATML, "<|im_end|>"), (THINKING, "<|im_end|>"), (GEMMA, "<end_of_turn>")):
        message = warnings(caplog, template, [])
        number = parts()[1].convert_tokens_to_ids(token)
        assert f"ends a turn with {token!r}, which is not an end token of the model ('<eos>')" in message
        assert f"add its id {number} to eos_token_id in the model's generation_config.json" in message
        assert warnings(caplog, template, [token]) == ""
    both = CHATML.replace("<|im_end|>", "</tool_call><|im_end|>")  # a mark before the end, as Cohere's
    assert "'<|im_end|>'" in warnings(caplog, both, [])
    assert warnings(caplog, both, ["<|im_end|>"]) == ""
    phi = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")  # written for training, never sampled
    assert "'<|im_end|>'" in warnings(caplog, phi, [])
    glm = CHATML.replace("<|im_end|>\n", "")  # the next turn's beginning ends this one
    assert "'<|im_start|>'" in warnings(caplog, glm, [])
    assert warnings(caplog, glm, ["<|im_start|>"]) == ""


def test_a_turn_end_that_is_not_a_token_is_warned_of(caplog):
    message = warnings(caplog, CHATML.replace("<|im_end|>", "<|done|>"), [])
    assert "ends a turn with '<|done|>', which is not a token of this model" in message
    plain = "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
    assert warnings(caplog, plain, []) == warnings(caplog, None, []) == ""
    single = "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }}"
    assert warnings(caplog, single, []) == ""


def test_an_end_token_that_is_also_the_unknown_one_ends_a_turn(caplog):
    """As in CLIP's tokenizers, where <|endoftext|> begins, pads and stands for what is unknown."""
    model, tokenizer = parts(CHATML.replace("<|im_end|>", "<eos>"))
    tokenizer.eos_token, tokenizer.unk_token = "<eos>", "<eos>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with caplog.at_level(logging.WARNING, "genalign"):
        policy = LanguagePolicy(model, tokenizer, settings())
    assert caplog.messages == []
    assert policy.chat.turn_end == [tokenizer.eos_token_id]


def test_the_cure_ends_completions_at_the_turn(tmp_path):
    model, tokenizer = parts(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = 2
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [2, end]}))
    made = load_policy(settings(max_new_tokens=20), tmp_path)
    completions = made.rollout([Prompt("hello")], 40, 0).tape.completion
    assert any(completion[-1] == end for completion in completions)
    assert not any(end in completion[:-1] for completion in completions)


def test_a_given_answer_is_what_sampling_would_have_written():
    """It reads back as it was given; what the template opened is not scored twice, and it ends as a turn does."""
    for template, text, tokens in (
        (CHATML, "one star", "one star <|im_end|>"),
        (THINKING, "<think> one </think> two", "one </think> two <|im_end|>"),
        (THINKING, "<think>\none </think> two <|im_end|>", "one </think> two <|im_end|>"),
        (THINKING, "one </think> two", "one </think> two <|im_end|>"),
        (CHATML, "<think> one </think> two", "<think> one </think> two <|im_end|>"),
        (None, "one star", "one star <eos>"),
    ):
        made = policy(template).chat
        encoded = made.encode(Prompt("hello"))
        ids = made.answer(encoded, text)
        assert made.tokenizer.convert_ids_to_tokens(list(ids)) == tokens.split()
        assert made.text(encoded, ids).endswith(tokens.removesuffix(tokens.split()[-1]).strip())


def test_the_last_turn_of_a_conversation_is_where_the_template_goes_on():
    turns = [("user", "draw a star"), ("assistant", "<think> no"), ("user", "yes <think>")]
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = Prompt("yes", facts={"messages": messages})
    for template, opening in ((CHATML, ""), (THINKING, "<think>\n"), (GEMMA, "")):
        made = chat(template)
        encoded = made.encode(prompt)
        assert encoded.opening == opening
        expected = made.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert list(encoded.ids) == expected
    own = Prompt("hello", facts={"messages": [{"role": "system", "content": "a"}, *messages]})
    with pytest.raises(UsageError, match=r"takes no system turn \(System role not supported\); begin messages with"):
        chat(GEMMA).encode(own)
