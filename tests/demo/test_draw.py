"""The tab Draw: the samples are those of `genalign sample`, text stays text, a search ends when it is cancelled."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from genalign import sample
from genalign.demo import markup
from genalign.demo.draw import drawing
from genalign.demo.models import BASE
from genalign.demo.searches import Trail, searching
from genalign.demo.works import CancelledError, Work, Works, watched
from genalign.types import GenalignError, Media, Prompt, Track, UsageError
from tests.demo.conftest import RUN

PICTURE = re.compile(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)"')


def pictures(html):
    return [(alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for alt, data in PICTURE.findall(html)]


def drawn(models, work=None, name=BASE, prompt=None, seed=0, count=1, guidance=0, steps=0):
    prompt = models.offered[0] if prompt is None else prompt
    return list(drawing(models, work or Work(), name, prompt, seed, count, guidance, steps))


def test_the_samples_are_those_of_genalign_sample(models):
    *_, last = drawn(models, name=RUN, seed=7, count=2)
    found = dict(pictures(last))
    for base, name in ((True, "base"), (False, RUN)):
        with models.drawing(RUN) as source:
            want = list(sample(source, models.offered[0], n=2, seed=7, base=base))
        for k, one in enumerate(want):
            levels = (one.media["image"].data[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(found[f"{name}: {models.offered[0]}, seed {7 + k}"], levels)
    assert not np.array_equal(*(found[f"{name}: {models.offered[0]}, seed 7"] for name in ("base", RUN)))


def test_bars_show_every_part_and_the_judge_apart(models):
    *_, last = drawn(models)
    sections = re.findall(r'<section class="scores( judge)?"><h4>(.*?)</h4>', last)
    assert sections == [("", "hybrid"), (" judge", "judge <em>held out</em>")]
    numbers = re.findall(r'title="(?:scene_facts|scene_facts/objects|clip|all_facts)">.*?<b>(\d\.\d\d)</b>', last)
    assert len(numbers) == 4


def test_a_prompt_of_ones_own_is_drawn_and_says_what_does_not_score_it(models):
    *_, last = drawn(models, prompt="a red apple that nobody described")
    assert len(pictures(last)) == 1
    assert "judge does not score this prompt, which lacks facts.objects" in last


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_html_in_a_prompt_is_shown_as_text(models):
    hostile = '<script>alert(1)</script> <img src=x onerror=alert(2)> ${alert(3)} {{this}} "quoted" `x`'
    *_, last = drawn(models, prompt=hostile)
    tags = Tags()
    tags.feed(last)
    assert hostile in tags.text
    assert not [tag for tag, _ in tags.found if tag == "script"]
    assert not [attrs for _, attrs in tags.found if any(name.startswith("on") for name in attrs)]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": 9}, "9 samples are wanted; ask for 1 to 8"),
        ({"count": 0}, "0 samples are wanted"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": 2**32}, "the seed is"),
        ({"steps": 10_000}, "10000 steps are wanted"),
        ({"guidance": 51}, "the guidance scale is 51"),
        ({"guidance": float("nan")}, "the guidance scale is nan"),
        ({"prompt": " "}, "there is no prompt"),
        ({"name": "../elsewhere"}, "there is no run"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(models, given, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        drawn(models, **given)


def test_a_drawing_ends_when_it_is_cancelled(models):
    work = Work()
    pieces = drawing(models, work, BASE, models.offered[0], 0, 8, 0, 0)
    next(pieces)
    work.cancel()
    with pytest.raises(CancelledError):
        list(pieces)


def test_a_drawing_ends_inside_a_sample_at_the_next_pass_of_a_network(models):
    """Cancelled while the first sample is drawn, at its second denoising step: nothing is drawn to its end."""
    work, steps = Work(), []

    def cancel(*_):
        steps.append(1)
        if len(steps) == 2:
            work.cancel()

    with models.drawing(BASE) as source:
        hook = source.policy.pipeline.transformer.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(CancelledError):
            drawn(models, work, count=8, steps=50)
    finally:
        hook.remove()
    assert len(steps) == 2
    before = models.built.policy.calls()
    assert len(pictures(drawn(models)[-1])) == 1  # and the model draws again
    assert models.built.policy.calls() > before


def test_other_threads_networks_are_left_alone():
    from concurrent.futures import ThreadPoolExecutor

    work, layer = Work(), torch.nn.Linear(1, 1)
    work.cancel()
    with work.networks(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(layer, torch.ones(1)).result().shape == (1,)
        with pytest.raises(CancelledError):
            layer(torch.ones(1))
    assert layer(torch.ones(1)).shape == (1,)


def test_a_search_shows_its_curve_and_ends_with_a_table(models):
    *_, last = searching(models, Work(), BASE, models.offered[0], 0, ["best-of-n", "random"], "", 8)
    assert "<svg" in last
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", last)
    assert [row[0] for row in rows] == ["plain", "best-of-n", "random"]
    plain, best, _ = (float(row[1]) for row in rows)
    assert best >= plain
    assert [float(row[3]) for row in rows] == [1.0, 8.0, 8.0]


def test_a_search_ends_at_the_next_sample_when_it_is_cancelled(models):
    work, calls = Work(), models.built.policy.calls()
    pieces = searching(models, work, BASE, models.offered[0], 0, ["random"], "", 1000)
    next(pieces)
    work.cancel()
    with pytest.raises(CancelledError):
        list(pieces)
    assert models.built.policy.calls() - calls < 3000 / 2  # of the three denoiser calls of each of 1000 samplings
    assert drawn(models)  # and the model is free again


def test_a_search_that_needs_gradients_says_so(models):
    with pytest.raises(GenalignError, match="not differentiable"):
        list(searching(models, Work(), BASE, models.offered[0], 0, ["reno"], "", 8))


def test_reno_moves_by_a_differentiable_reward(models):
    *_, last = searching(models, Work(), BASE, models.offered[0], 0, ["reno"], "image-clip", 16)
    assert len(re.findall(r"<tr><td>reno</td>", last)) == 1
    assert "best reward so far" in last
    values = [
        float(value) for value in re.findall(r"<figcaption>(-?\d\.\d+)</figcaption>", last.split("<h4>reno</h4>")[1])
    ]
    assert len(values) > 1  # the samples on the way, each better than the one before
    assert values == sorted(values)


def test_a_trail_keeps_the_best_so_far():
    trail = Trail(["plain", "random"], 4)
    trail.finished = 1
    for value in (0.5, 0.2, float("nan"), 0.9):
        trail.see([Prompt("")], Media(image=Track(torch.zeros(1, 3, 2, 2))), scores(value))
    assert [best for _, best in trail.curves["random"]] == pytest.approx([0.5, 0.5, 0.5, 0.9])
    assert [value for value, _ in trail.best["random"]] == pytest.approx([0.5, 0.9])
    assert trail.done == 1.0


def test_a_trail_is_read_while_a_search_writes_it():
    trail, prompt, media = Trail(["plain", "random", "fk"], 4), Prompt("x"), Media(image=Track(torch.zeros(1, 3, 2, 2)))
    for finished in range(3):
        trail.finished = finished
        readers = iter(trail.curves.items()), iter(trail.best.items())
        [next(reader) for reader in readers]
        trail.see([prompt], media, scores(0.5))
        for reader in readers:
            list(reader)  # a dictionary that had grown would raise


def scores(value):
    from genalign.types import Scores

    readable = torch.tensor([value == value])
    total = torch.tensor([value]).nan_to_num()
    return Scores(("x",), total[:, None], readable[:, None], ~readable[:, None], total, readable, torch.ones(1))


def test_a_new_work_of_a_page_ends_the_one_before():
    works = Works()
    first, other = works.start("page"), works.start("another page")
    second = works.start("page")
    with pytest.raises(CancelledError):
        first.check()
    second.check()
    other.check()
    works.cancel("page")
    works.cancel("page")
    with pytest.raises(CancelledError):
        second.check()


def test_whoever_stops_watching_cancels():
    work, ended = Work(), []

    def run():
        try:
            while True:
                work.check()
        finally:
            ended.append(True)

    watching = watched(work, run)
    assert next(watching) is False
    watching.close()
    assert ended


def test_a_failure_in_the_thread_is_raised_here():
    def run():
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        list(watched(Work(), run))


def test_folders_of_this_machine_are_left_out_of_sentences():
    error = UsageError(
        "cannot read '/home/somebody/secret/run-1/recipe.yaml' (no such file); see /etc/x/y and a/b, 1/2"
    )
    assert markup.sentence(error) == "cannot read 'recipe.yaml' (no such file); see y and a/b, 1/2"
    assert "ZeroDivisionError" not in markup.sentence(ZeroDivisionError("/root/secret"))
    assert "/root" not in markup.sentence(ZeroDivisionError("/root/secret"))
