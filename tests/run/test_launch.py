"""The order of what a run does."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from genalign.cli.main import main
from genalign.evaluation.card import loading
from genalign.evaluation.summary import lead_in, sentence
from genalign.reward import Runner
from genalign.run.build import build
from genalign.run.launch import train_recipe
from genalign.run.recipe import load_recipe
from genalign.training.checkpoint import load_checkpoint
from genalign.training.metrics import read_rows
from genalign.types import UsageError
from tests.helpers.tiny_recipe import image_model, write_recipe


def test_a_reward_that_draws_while_it_loads_meets_seeded_generators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the global generators in a checkpoint follows from the seed, whatever was drawn before the run."""

    def version(self: Any) -> str:
        torch.rand(3)  # as a network does that is made before its weights are read
        return "1"

    monkeypatch.setattr(Runner, "version", property(version))
    recipe = write_recipe(tmp_path, train={"steps": 1, "checkpoint_every": 1, "sample_every": 99}, eval=None)
    states = []
    for name in ("one", "two"):
        torch.rand(len(name) + len(states))
        run = train_recipe(str(recipe), out=tmp_path / name)
        assert run is not None
        states.append(load_checkpoint(run / "checkpoint-1").parts["random"]["0/torch"])
    assert torch.equal(*states)
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.equal(states[0], torch.get_rng_state())


def test_a_run_ends_with_its_sentence_and_an_evaluation_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the console last; in the report and the card; computed from what eval.json holds."""
    file = write_recipe(
        tmp_path, train={"steps": 1, "sample_every": 1}, eval={"guidance": [1.0], "held_out": "sharpness"}
    )
    run = tmp_path / "run"
    train_recipe(str(file), out=run)
    said = capsys.readouterr().out.splitlines()
    result, log = json.loads((run / "eval.json").read_text()), read_rows(run / "metrics.jsonl")
    assert said[-1] == sentence(result, lead_in(log))
    assert said[-1].startswith("After ")
    assert "sharpness" in said[-1]
    assert html.escape(said[-1]) in (run / "report.html").read_text()
    assert said[-1] in (run / "README.md").read_text()
    assert main(["eval", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said[-1]


@pytest.mark.parametrize("earlier", [1, 2])
def test_a_run_goes_on_from_the_adapters_of_others_as_its_card_says(tmp_path: Path, earlier: int) -> None:
    """diffusers alone, by the card's own lines, draws what the last run's tuned policy draws."""
    adapters: list[str] = []
    for k in range(earlier):
        policy = {"merged": list(adapters)} if adapters else {}
        train_recipe(str(write_recipe(tmp_path / f"recipe-{k}", policy=policy, eval=None)), out=tmp_path / f"run-{k}")
        adapters.append(str(tmp_path / f"run-{k}" / "adapter"))
    policy = {"merged": adapters[0] if earlier == 1 else adapters}
    last = train_recipe(str(write_recipe(tmp_path / "last", policy=policy, eval=None)), out=tmp_path / "run-last")
    assert last is not None
    code = loading(last)
    variables = ["merged"] if earlier == 1 else ["merged_0", "merged_1"]
    places = {'"tiny-random"': repr(str(image_model())), 'weights("adapter")': f"weights({str(last / 'adapter')!r})"}
    for variable, adapter in zip(variables, adapters, strict=True):
        assert f'{variable} = "adapter"' in code
        places[f'{variable} = "adapter"'] = f"{variable} = {adapter!r}"
    for name, place in places.items():
        code = code.replace(name, place)
    scope: dict[str, Any] = {}
    exec(code, scope)
    built = build(load_recipe(last / "recipe.yaml"))
    built.policy.load_adapter(last / "adapter")
    ours, theirs = (
        {name: part for name, part in pipe.unet.named_modules() if isinstance(part, LoraLayer)}
        for pipe in (built.policy.pipeline, scope["pipe"])
    )
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        torch.testing.assert_close(theirs[name].base_layer.weight, layer.base_layer.weight)
        mine = layer.get_delta_weight("default")
        torch.testing.assert_close(theirs[name].get_delta_weight("default_0"), mine)


def test_a_guide_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no fitted reward 'nowhere'; make one by genalign fit-reward"):
        train_recipe("image-nrg", ["method.noisy=nowhere"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
