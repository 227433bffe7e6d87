"""Texts on the page: token by token while they are written, base and tuned side by side, and ended when unwanted."""

import html
import json
import re
import time

import pytest
import torch
from PIL import Image

from genalign.demo.cards import Drawn, cards
from genalign.demo.draw import drawing
from genalign.demo.models import BASE, Models
from genalign.demo.works import CancelledError, Work
from genalign.files.settings import write_yaml
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.tiny_language import save_tiny_language

RUN = "tuned-text"
TEXT = re.compile(r"<blockquote>(.*?)</blockquote><figcaption>(.*?)</figcaption>")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = [f"policy.model={save_tiny_language(folder / 'model')}", "policy.system=null", "policy.max_new_tokens=8"]
    found = Models("text-dpo", words, folder / "runs")
    with found.drawing(BASE) as source:
        torch.manual_seed(0)
        for parameter in source.policy.named_trainable().values():
            parameter.data.normal_(std=0.5)
        source.policy.save_adapter(folder / "runs" / RUN / "adapter")
    (folder / "runs" / RUN / "recipe.yaml").write_text(write_yaml(found.recipe.resolved()))
    return found


def texts(page):
    return [(html.unescape(text), name) for text, name in TEXT.findall(page)]


def wordy(models):
    """A seed from which base and run both write some words."""
    with models.drawing(RUN) as source:
        policy, prompt = source.policy, models.prompt(models.offered[0])
        for seed in range(100):
            lengths = []
            for weights in ("reference", "policy"):
                with policy.weights(weights):
                    lengths.append(len(policy.rollout([prompt], 1, [seed]).media["text"].data[0].split()))
            if min(lengths) > 4:
                return seed
    raise AssertionError("no seed of a hundred writes five words")


def written(models, name=BASE, seed=3, count=1, greedy=False, work=None):
    return drawing(models, work or Work(), name, models.offered[0], seed, count, 0, 0, greedy)


def slowly(policy):
    """Let each pass of the model take longer than the page's glance; returns what counts them, and the hook."""
    passes = []

    def wait(*_):
        passes.append(1)
        time.sleep(0.15)

    return passes, policy.model.register_forward_pre_hook(wait)


def test_the_texts_are_those_that_a_rollout_draws_from_the_seeds(models):
    *_, last = written(models, RUN, count=2)
    with models.drawing(RUN) as source:
        prompt, policy = models.prompt(models.offered[0]), source.policy
        for kind, weights in ((BASE, "reference"), (RUN, "policy")):
            with policy.weights(weights):
                wanted = policy.rollout([prompt, prompt], 1, [3, 4]).media["text"].data
            assert [text for text, name in texts(last) if name == kind] == wanted
    assert len({text for text, _ in texts(last)}) > 1


def test_greedy_texts_are_those_of_genalign_sample(models):
    *_, last = written(models, greedy=True)
    with models.drawing(BASE) as source, source.policy.weights("reference"):
        wanted = source.policy.generate([models.prompt(models.offered[0])], [0])["text"].data
    assert [text for text, _ in texts(last)] == wanted


def test_a_text_grows_on_the_page_base_first_and_tuned_beside_it(models):
    list(written(models, RUN))  # loads, and tries how rows are written
    with models.drawing(RUN) as source:
        _, hook = slowly(source.policy)
    try:
        seen = [{name: text for text, name in texts(page)} for page in written(models, RUN, wordy(models))]
    finally:
        hook.remove()
    for name in (BASE, RUN):
        states = list(dict.fromkeys(one[name] for one in seen if name in one))
        assert len(states) > 2
        assert all(states[-1].startswith(state) for state in states)
    assert RUN not in seen[0]
    assert seen[-1].keys() == {BASE, RUN}


def test_a_text_ends_at_the_next_token_when_it_is_cancelled(models):
    list(written(models))
    with models.drawing(BASE) as source:
        passes, hook = slowly(source.policy)
    work = Work()
    try:
        pieces = written(models, work=work)
        next(pieces)
        work.cancel()
        before = len(passes)
        with pytest.raises(CancelledError):
            list(pieces)
    finally:
        hook.remove()
    assert len(passes) <= before + 1
    assert texts(list(written(models))[-1])  # and the model is free again


def test_a_text_has_no_guidance(models):
    with pytest.raises(UsageError, match="has no guidance"):
        list(drawing(models, Work(), BASE, models.offered[0], 0, 1, 2.0, 0))


def test_a_model_that_sees_is_shown_the_picture_of_its_prompt(tmp_path):
    from tests.helpers.tiny_readers import READERS

    model, reader = READERS["qwen2.5-vl"].build()
    model.save_pretrained(tmp_path / "model")
    reader.save_pretrained(tmp_path / "model")
    rows = []
    for number in range(2):  # one question about two pictures
        Image.new("RGB", (20, 20), (200 * number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(json.dumps({"prompt": "how many star", "image": f"{number}.png", "facts": {"answer": 1}}) + "\n")
    (tmp_path / "asked.jsonl").write_text("".join(rows))
    words = [f"policy.model={tmp_path / 'model'}", "policy.system=null", "policy.max_new_tokens=4", "eval=null"]
    words += [
        f"data.prompts={tmp_path / 'asked.jsonl'}",
        "data.prompts_per_step=1",
        "reward=text_rules.py:says_facts",
    ]
    found = Models("text-dpo", words, tmp_path / "runs")
    assert found.offered == ["how many star", "how many star (2)"]
    shown = [list(drawing(found, Work(), BASE, name, 0, 1, 0, 0))[-1] for name in found.offered]
    pictures = [re.findall(r'<img alt="image that the prompt brings" src="([^"]+)"', page) for page in shown]
    assert [len(one) for one in pictures] == [1, 1]
    assert pictures[0] != pictures[1]
    assert all(texts(page) for page in shown)


@pytest.mark.parametrize(
    ("media", "player"),
    [
        (Media(video=Track(torch.zeros(1, 4, 3, 16, 16), 8.0)), "<video controls"),
        (Media(audio=Track(torch.zeros(1, 1, 4000), 16000.0)), "<audio controls"),
    ],
)
def test_clips_and_sounds_have_a_player(media, player):
    page = cards([Drawn(0, {"base": media, "tuned": media})], Prompt("a <b>star</b>"))
    assert page.count(player) == 2
    assert "a &lt;b&gt;star" in page
    assert "compare" not in page  # pictures alone are laid over each other
