"""A method's settings: presets, families, names, and what makes no sense."""

from __future__ import annotations

import pytest

from genalign.method import FAMILIES, PRESETS, MethodSettings
from genalign.method.gradient import GradientSettings
from genalign.run.recipe import Recipe
from genalign.types import UsageError


def test_a_preset_fills_in_and_a_recipe_overrides():
    plain, own = MethodSettings(name="flow-grpo"), MethodSettings(name="flow-grpo", group=24, std="group")
    assert (plain.group, plain.std, plain.clip_nats) == (16, "batch", (1.0, 1.0))
    assert (own.group, own.std, own.clip_nats) == (24, "group", (1.0, 1.0))
    assert MethodSettings.model_validate(own.model_dump(mode="json")) == own


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "grop"}, "did you mean 'grpo'"),
        ({"name": "sac"}, "known are ddpo"),
        (
            {"name": "d3po", "kl_beta": 0.1},
            r"method d3po does not read method\.kl_beta; .* ddpo, flow-grpo, grpo, dr-grpo, .*, rloo",
        ),
        ({"name": "grpo", "beta": 0.2}, r"does not read method\.beta; .* d3po, .*dpo"),
        ({"name": "grpo", "group": 1}, "compares siblings"),
        ({"name": "d3po", "group": 1}, "compares siblings"),
        ({"name": "dpo", "objective": "a", "loss": "ipo"}, r"method\.objective is a margin of loss sigmoid"),
        ({"name": "dpo", "objective": "a", "pairs": "p.jsonl"}, r"method\.objective is a margin of loss sigmoid"),
        ({"name": "d3po", "beeta": 1.0}, r"there is no key 'method\.beeta'; did you mean 'beta'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        MethodSettings(**keys)


@pytest.mark.parametrize("name", PRESETS)
def test_a_family_reads_all_its_keys_and_a_recipe_writes_them_out(name):
    """Whatever validates: by name, from plain data, or inside a recipe, whose resolved form repeats it."""
    settings = MethodSettings(name=name)
    (kind,) = (family for family in FAMILIES if name in family.presets)
    assert type(settings) is kind is type(MethodSettings.model_validate({"name": name}))
    assert set(kind.presets[name]) <= set(kind.model_fields)
    recipe = Recipe(policy={"model": "x"}, data={"prompts": "x.txt"}, method={"name": name})
    plain = recipe.resolved()["method"]
    assert set(plain) == set(kind.model_fields)
    assert MethodSettings(**plain) == settings == recipe.method


def test_names_are_given_once():
    assert len(PRESETS) == sum(len(family.presets) for family in FAMILIES)


def test_settings_of_another_family_are_refused():
    with pytest.raises(UsageError, match="method d3po is one of PreferenceSettings, not of GradientSettings"):
        GradientSettings(name="d3po")
