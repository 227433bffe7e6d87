"""How autoencoders decode: diffusers' own pipelines with its own switches are the oracle."""

from __future__ import annotations

import pytest
import torch

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Vae
from genalign.types import Prompt, UsageError
from tests.helpers.diffusion import PROMPTS, draw, settings
from tests.helpers.tiny_pipelines import FAMILIES
from tests.helpers.tiny_videos import CLIPS


def policy(name: str, **vae: object) -> DiffusionPolicy:
    return DiffusionPolicy(FAMILIES[name].build(), settings(name).model_copy(update={"vae": Vae.model_validate(vae)}))


@pytest.mark.parametrize("name", ["stable-diffusion-3", "qwen-image"])
def test_tiles_are_those_of_diffusers(name: str) -> None:
    plain, tiled = FAMILIES[name].build(), policy(name, tiling=True)
    plain.vae.enable_tiling()
    for vae in (plain.vae, tiled.pipeline.vae):  # tiles smaller than these pictures
        if hasattr(vae, "tile_latent_min_size"):
            vae.tile_latent_min_size, vae.tile_sample_min_size = 4, 8
        else:
            vae.enable_tiling(8, 8, 6, 6)
    guidance = {"true_cfg_scale": 1.0} if name == "qwen-image" else {"guidance_scale": 1.0}
    wanted = draw(plain, tiled, **guidance)
    made = tiled.generate(PROMPTS[:1], [7])["image"].data
    torch.testing.assert_close(made, wanted, rtol=0, atol=2e-6)
    whole = policy(name).generate(PROMPTS[:1], [7])["image"].data
    assert (made - whole).abs().max() > 1e-4  # or nothing was tiled


def test_sliced_rows_are_those_that_are_decoded_alone() -> None:
    sliced = policy("stable-diffusion-3", slicing=True)
    asked: list[int] = []
    real = sliced.pipeline.vae.decoder.forward
    sliced.pipeline.vae.decoder.forward = lambda x, *args: (asked.append(len(x)), real(x, *args))[1]
    together = sliced.generate(PROMPTS, [1, 2, 3])["image"].data
    assert asked == [1, 1, 1]
    whole = policy("stable-diffusion-3")
    alone = [whole.generate([prompt], [seed])["image"].data for prompt, seed in zip(PROMPTS, (1, 2, 3), strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_frames_are_decoded_some_at_a_time() -> None:
    family = CLIPS["cogvideox"]
    pipeline = family.build()
    chosen = settings("stable-diffusion-3").model_copy(update={"call": family.call, "vae": Vae(chunk=1)})
    chosen = chosen.model_copy(update={"sampler": chosen.sampler.model_copy(update={"kernel": "ode"}), "frame_rate": 8})
    of = DiffusionPolicy(pipeline, chosen)
    asked: list[int] = []
    real = pipeline.vae.decoder.forward
    pipeline.vae.decoder.forward = lambda x, *args, **kw: (asked.append(x.shape[2]), real(x, *args, **kw))[1]
    of.generate([Prompt("a b")], [0])
    assert set(asked) <= {1, 2}  # the first chunk takes the frame that is over
    assert pipeline.vae.num_latent_frames_batch_size == 1


@pytest.mark.parametrize(
    ("vae", "sentence"),
    [({"chunk": 2}, r"policy\.vae\.chunk: AutoencoderKL has its own number of frames"),
     ({"tiling": True}, r"policy\.vae\.tiling: VQModel cannot decode so")],
)  # fmt: skip
def test_what_an_autoencoder_cannot_do_is_one_sentence(vae: dict[str, object], sentence: str) -> None:
    from genalign.policy.decoding import set_decoding
    from tests.helpers.tiny_pipelines import movq

    pipeline = FAMILIES["stable-diffusion"].build()
    if "tiling" in vae:
        pipeline.vae = movq()
    with pytest.raises(UsageError, match=sentence) as error:
        set_decoding(pipeline, Vae.model_validate(vae))
    assert "\n" not in str(error.value)
