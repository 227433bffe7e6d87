"""Flow-NRG on the page: the samples are those of `genalign sample image-nrg`, its sliders the weights of objectives."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from genalign.cli.search import search
from genalign.demo.guide import guide_of, guiding
from genalign.demo.models import BASE, Models
from genalign.demo.works import CancelledError, Work
from genalign.types import UsageError
from tests.demo.conftest import RUN

PICTURE = re.compile(r'<img alt="(plain|guided): [^"]*, seed (\d)" src="data:image/png;base64,([^"]+)"')


@pytest.fixture(scope="module")
def guide(models):
    return guide_of(models)


def drawn(models, guide, name=BASE, count=2, strength=2.0, weights=None):
    weights = dict(guide.weights) if weights is None else weights
    *_, last = guiding(models, guide, Work(), name, models.offered[0], 0, count, strength, weights)
    found = {}
    for kind, seed, data in PICTURE.findall(last):
        found[kind, int(seed)] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    return found, last


def levels(media):
    return (media["image"].data[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def test_there_is_a_slider_for_each_objective_of_the_recipe(guide):
    assert dict(guide.weights) == {"objects": 1.0, "count": 1.0, "relation": 1.0, "background": 1.0}
    assert guide.strength == 2.0


def test_the_samples_are_those_of_the_recipe(models, guide):
    found, last = drawn(models, guide)
    with models.drawing(BASE) as source:
        prompt = models.prompt(models.offered[0])
        run = search("image-nrg", [prompt], n=2, seed=0)
        run.source.__dict__["policy"] = source.policy  # the page's own sampler
        wanted = list(run)
    for k in range(2):
        np.testing.assert_array_equal(found["plain", k], levels(wanted[k].media))
        near = found["guided", k].astype(int) - levels(wanted[2 + k].media)  # of two rows in one batch
        assert np.abs(near).max() <= 2
        assert not np.array_equal(found["plain", k], found["guided", k])
    assert last.count('class="scores judge"') == 4


def test_without_strength_or_weights_nothing_is_changed(models, guide):
    for settings in ({"strength": 0.0}, {"weights": dict.fromkeys(guide.weights, 0.0)}):
        found, _ = drawn(models, guide, count=1, **settings)
        np.testing.assert_array_equal(found["plain", 0], found["guided", 0])


def test_each_slider_moves_the_samples_its_own_way(models, guide):
    alone = [drawn(models, guide, count=1, weights={**dict.fromkeys(guide.weights, 0.0), name: 3.0})[0]["guided", 0]
             for name in ("count", "background")]  # fmt: skip
    assert not np.array_equal(*alone)


def test_a_run_is_guided_too(models, guide):
    base, tuned = (drawn(models, guide, name, count=1)[0] for name in (BASE, RUN))
    assert not np.array_equal(base["guided", 0], tuned["guided", 0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strength": 11.0}, "the strength is 11"),
        ({"strength": float("nan")}, "the strength is nan"),
        ({"weights": {"counts": 1.0}}, "did you mean 'count'"),
        ({"weights": {"count": -1.0}}, "count counts -1"),
        ({"count": 9}, "9 samples are wanted"),
    ],
)
def test_what_cannot_be_guided_is_refused(models, guide, settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        drawn(models, guide, **settings)


def test_it_ends_when_it_is_cancelled(models, guide):
    work = Work()
    pieces = guiding(models, guide, work, BASE, models.offered[0], 0, 8, 2.0, guide.weights)
    next(pieces)
    work.cancel()
    with pytest.raises(CancelledError):
        list(pieces)


def test_a_model_without_a_fitted_reward_has_no_sliders(models, tmp_path):
    from tests.helpers.tiny_language import save_tiny_language

    words = [f"policy.model={save_tiny_language(tmp_path / 'model')}", "policy.system=null"]
    assert guide_of(Models("text-dpo", words, tmp_path)) is None
