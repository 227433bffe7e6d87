"""A LoRA merged into the frozen weights: what an earlier run tuned is where the next one starts, and its reference."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrizations
from transformers import AutoModelForCausalLM

from genalign.files.places import adapter_path, fetch_adapter
from genalign.policy import load_policy
from genalign.policy.merged import merged
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import GenalignError, Policy, UsageError
from tests.helpers.diffusion import PROMPTS, moved, settings
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.tiny_pipelines import stable_diffusion_3
from tests.helpers.tiny_writers import WRITERS

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "model"
    stable_diffusion_3().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves: adapter/ with a file for peft and one for diffusers."""
    folder = tmp_path_factory.mktemp("run") / "adapter"
    first = load_policy(settings(), saved)
    with moved(first):
        first.save_adapter(folder)
    return folder


def drawn(policy: Policy) -> torch.Tensor:
    return policy.generate(PROMPTS, [3, 4, 5])["image"].data


def test_an_earlier_runs_adapter_is_where_the_next_starts_and_its_reference(saved: Path, lora: Path) -> None:
    first = load_policy(settings(), saved)
    base = drawn(first)
    with moved(first):
        tuned = drawn(first)
    again = load_policy(settings().model_copy(update={"merged": str(lora)}), saved)
    torch.testing.assert_close(drawn(again), tuned, rtol=0, atol=1e-5)  # the sums are ordered otherwise
    assert (base - tuned).abs().max() > 1e-2
    with again.weights("reference"):
        assert torch.equal(drawn(again), drawn(load_policy(settings().model_copy(update={"merged": str(lora)}), saved)))


def test_weights_are_those_that_the_formula_says(saved: Path, lora: Path, tmp_path: Path) -> None:
    """W + alpha / r B A in float64, by the file of diffusers alone and by that of peft."""
    alone = tmp_path / LORA
    shutil.copy(lora / LORA, alone)
    config, tensors = (
        json.loads((lora / "adapter_config.json").read_text()),
        load_file(lora / "adapter_model.safetensors"),
    )
    plain = stable_diffusion_3().transformer.state_dict()
    for adapter in (alone, lora):
        policy = load_policy(settings().model_copy(update={"merged": str(adapter)}), saved)
        weights = policy.pipeline.transformer.state_dict()
        for key in (key for key in tensors if ".lora_A." in key):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            down, up = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
            wanted = plain[f"{name}.weight"].double() + config["lora_alpha"] / config["r"] * up @ down
            torch.testing.assert_close(weights[f"{name}.base_layer.weight"].double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_lora_of_other_programs_with_a_scale_of_its_own(saved: Path, tmp_path: Path) -> None:
    """kohya writes lora_down, lora_up and alpha; diffusers is the judge of what they mean."""
    pipeline = stable_diffusion_3()
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.transformer.add_adapter(config)
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(pipeline.transformer)
    type(pipeline).save_lora_weights(tmp_path, transformer_lora_layers=layers)
    made = load_policy(settings().model_copy(update={"merged": str(tmp_path)}), saved)
    plain = stable_diffusion_3()
    plain.load_lora_weights(tmp_path)
    wanted = {
        name: module.base_layer.weight + module.get_delta_weight("default_0")
        for name, module in plain.transformer.named_modules()
        if hasattr(module, "base_layer")
    }
    assert len(wanted) == len(layers) // 2
    for name, weight in wanted.items():
        torch.testing.assert_close(made.pipeline.transformer.get_submodule(name).base_layer.weight, weight)


def test_a_language_model(tmp_path: Path) -> None:
    save_tiny_language(tmp_path / "model")
    plain = PolicySettings(model="tiny", lora=Lora(rank=4), max_new_tokens=8)
    first = load_policy(plain, tmp_path / "model")
    with moved(first, 0.1):
        first.save_adapter(tmp_path / "adapter")
        wanted = first.generate(PROMPTS, [1, 2, 3])["text"].data
    again = load_policy(plain.model_copy(update={"merged": str(tmp_path / "adapter")}), tmp_path / "model")
    assert again.generate(PROMPTS, [1, 2, 3])["text"].data == wanted
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    by_peft = PeftModel.from_pretrained(bare, tmp_path / "adapter").merge_and_unload().state_dict()
    found = {key.replace(".base_layer", ""): value for key, value in again.model.state_dict().items()}
    for key, weight in by_peft.items():
        torch.testing.assert_close(found[key], weight)


def test_what_half_precision_drops_of_a_weak_adapter_is_said(saved: Path, lora: Path, tmp_path: Path) -> None:
    """Against the weights themselves: of a LoRA a thousand times weaker, bf16 keeps next to nothing."""
    weak = shutil.copytree(lora, tmp_path / "weak")
    tensors = load_file(weak / "adapter_model.safetensors")
    tensors = {key: value * (1e-3 if "lora_B" in key else 1) for key, value in tensors.items()}
    save_file(tensors, weak / "adapter_model.safetensors")
    half = settings().model_copy(update={"dtype": "bfloat16"})
    with pytest.warns(UserWarning, match=r"keep \d+% of weak; set policy.dtype=float32") as told:
        made = load_policy(half.model_copy(update={"merged": str(weak)}), saved)
    share = next(int(str(one.message).split("keep ")[1].split("%")[0]) for one in told if "keep " in str(one.message))
    plain = load_policy(half, saved).pipeline.transformer.state_dict()
    along = whole = 0.0
    for key in (key for key in tensors if ".lora_A." in key):
        name = f"{key.removeprefix('base_model.model.').removesuffix('.lora_A.weight')}.base_layer.weight"
        delta = 2 * tensors[key.replace("lora_A", "lora_B")].double() @ tensors[key].double()  # alpha / rank is 2
        moved = made.pipeline.transformer.state_dict()[name].double() - plain[name].double()
        along, whole = along + float((moved * delta).sum()), whole + float((delta * delta).sum())
    assert abs(100 * along / whole - share) < 3
    assert share < 60
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="policy.merged")
        load_policy(settings().model_copy(update={"merged": str(weak)}), saved)


# ---- bad input ------------------------------------------------------------------------------------------------------


def refusal(saved: Path, adapter: Path) -> str:
    with pytest.raises(GenalignError) as error:
        load_policy(settings().model_copy(update={"merged": str(adapter)}), saved)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_part_of_a_lora_is_never_left_out(saved: Path, lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora / LORA)
    name = next(name for name in tensors if ".lora_A." in name)
    for part in ("lora_A", "lora_B"):
        tensors[name.replace("transformer_blocks.0", "transformer_blocks.9").replace("lora_A", part)] = tensors[
            name.replace("lora_A", part)
        ].clone()
    save_file(tensors, tmp_path / LORA)
    assert "another model" in refusal(saved, tmp_path)


def test_adapters_that_cannot_be_merged_are_one_sentence_each(saved: Path, lora: Path, tmp_path: Path) -> None:
    other = shutil.copytree(lora, tmp_path / "other")
    tensors = {
        key: torch.zeros(3, *value.shape[1:]) for key, value in load_file(other / "adapter_model.safetensors").items()
    }
    save_file(tensors, other / "adapter_model.safetensors")
    assert "another model" in refusal(saved, other)

    pickled = shutil.copytree(lora, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "safetensors only" in refusal(saved, pickled)

    prompts = shutil.copytree(lora, tmp_path / "prompts")
    (prompts / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    assert "PROMPT_TUNING" in refusal(saved, prompts)

    several = tmp_path / "several"
    several.mkdir()
    for name in ("a", "b"):
        shutil.copy(lora / LORA, several / f"{name}.safetensors")
    assert "a.safetensors" in refusal(saved, several)
    assert "holds no LoRA" in refusal(saved, saved / "vae" / "diffusion_pytorch_model.safetensors")

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((lora / LORA).read_bytes()[:-100])
    assert "corrupt" in refusal(saved, cut)


def test_where_an_adapter_is_looked_for(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter_path("adapter", lora.parent) == lora
    assert adapter_path("owner/name/some/file.safetensors", tmp_path) == "owner/name/some/file.safetensors"
    with pytest.raises(UsageError, match="check the path"):
        adapter_path("nothing-here", tmp_path)
    asked: list[tuple[str, str]] = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(lora / LORA)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetch_adapter("owner/name/some/file.safetensors") == lora / LORA
    assert asked == [("owner/name", "some/file.safetensors")]


def test_an_adapter_of_a_weight_that_another_layer_shares_is_refused(tmp_path: Path) -> None:
    """peft would merge it into both, without a word: the same tensor reads tokens and writes logits."""
    model, words = WRITERS["qwen3"]()
    get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"])).save_pretrained(tmp_path / "adapter")
    model, words = WRITERS["qwen3"]()
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    chosen = PolicySettings(model="tiny", merged=str(tmp_path / "adapter"), lora=Lora(rank=2))
    with pytest.raises(UsageError, match=r"adapts lm_head, whose weight model.embed_tokens shares, so merging"):
        load_policy(chosen, tmp_path / "model")


class Layer(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.layer(value)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: torch.nn.Conv1d(4, 4, 3, padding=1), None),
        (lambda: torch.nn.Conv1d(4, 4, 1, padding_mode="circular"), None),  # it pads nothing
        (lambda: parametrizations.weight_norm(torch.nn.Conv1d(4, 4, 3, padding=1)), "is computed from others"),
        (lambda: parametrizations.spectral_norm(torch.nn.Linear(8, 8)), "is computed from others"),
        (lambda: torch.nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), "pads by circular"),
    ],
)
def test_a_layer_that_merging_would_make_another_is_refused(
    made: Callable[[], torch.nn.Module], why: str | None, tmp_path: Path
) -> None:
    """Against the network with its adapter beside it; and that peft still merges the others into something else."""
    torch.manual_seed(0)
    value, base = torch.randn(1, 4, 8), Layer(made()).eval()
    config = LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(base), config).eval()
    tuned.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = tuned(value)
        if why is None:
            torch.testing.assert_close(merged(base, tmp_path)(value), wanted)
            return
        with pytest.raises(UsageError, match=f"adapts layer, .*{why}"):
            merged(base, tmp_path)
        assert (tuned.merge_and_unload(safe_merge=True)(value) - wanted).abs().max() > 1e-2
