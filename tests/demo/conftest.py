"""The shipped model behind the page, loaded once a file of tests, and a run of it whose adapter was never trained."""

import pytest
import torch

from genalign.demo.deck import Deck
from genalign.demo.models import Models
from genalign.demo.votes import Votes
from genalign.files.settings import write_yaml

SMALL = ["eval.count=4", "train.monitor.count=2", "data.prompts_per_step=4"]
RUN = "tuned-run"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    found = Models("image-d3po", SMALL, runs)
    with found.drawing("base") as source:
        policy = source.policy
        torch.manual_seed(0)
        for parameter in policy.named_trainable().values():
            parameter.data.normal_(std=0.05)
        policy.save_adapter(runs / RUN / "adapter")
    (runs / RUN / "recipe.yaml").write_text(write_yaml(found.recipe.resolved()))
    return found


@pytest.fixture
def votes(tmp_path):
    found = Votes(tmp_path / "votes")
    yield found
    found.close()


@pytest.fixture
def deck(models, votes):
    return Deck(models, votes, seed=0)
