"""`genalign lab build NAME`: make the shipped world and models again. Every builder resumes from its work folder."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genalign.files.shipped import shipped
from genalign.lab.prompt_files import build_melodies, build_moves, build_prompts, build_sums
from genalign.types import UsageError


def _world(work: Path, out: Path) -> None:
    build_prompts(out)


def _moves(work: Path, out: Path) -> None:
    build_moves(out)


def _melodies(work: Path, out: Path) -> None:
    from genalign.lab.melody_figure import draw

    build_melodies(out)
    draw(out / "spectrograms.png")


def _sums(work: Path, out: Path) -> None:
    build_sums(out)


def _lm(work: Path, out: Path) -> None:
    from genalign.lab.lm import build_lm, save_lm

    save_lm(*build_lm(work), out)


def _mdlm(work: Path, out: Path) -> None:
    from genalign.lab.mdlm import build_mdlm, save_mdlm

    save_mdlm(*build_mdlm(work), out)


def _autoencoder(work: Path) -> Any:
    """The shared autoencoder, trained if the work folder has none yet; scaled so that latents have unit size."""
    from diffusers import AutoencoderTiny

    from genalign.lab.autoencoder import build_autoencoder

    if not (work / "vae" / "config.json").exists():
        build_autoencoder(work).save_pretrained(work / "vae")
    vae = AutoencoderTiny.from_pretrained(work / "vae").eval()
    vae.register_to_config(scaling_factor=0.92)
    return vae


def _flow(work: Path, out: Path) -> None:
    from genalign.lab.flow_build import build_flow

    _save_staged(*build_flow(work, _autoencoder(work)), out)


def _video(work: Path, out: Path) -> None:
    from genalign.lab.video_build import build_video
    from genalign.lab.video_figures import SHEET, draw_sheet

    pipeline, figures = build_video(work / "video")
    draw_sheet(pipeline, out / SHEET)
    _save_staged(pipeline, figures, out)


def _music(work: Path, out: Path) -> None:
    from genalign.lab.music_build import build_music
    from genalign.lab.music_figures import play_sheet

    pipeline, figures = build_music(work / "music")
    play_sheet(pipeline, out)
    _save_staged(pipeline, figures, out)


def _music_judge(work: Path, out: Path) -> None:
    from genalign.lab.music_judge import build_judge, save_judge

    save_judge(build_judge(work), out)


def _save_staged(pipeline: Any, figures: dict[str, dict[str, Any]], out: Path) -> None:
    """The pipeline, and what each of its stages reached."""
    _save_pipeline(pipeline, out)
    (out / "stages.json").write_text(json.dumps(figures, indent=1) + "\n")


def _turbo(work: Path, out: Path) -> None:
    from genalign.lab.turbo import build_turbo, save_turbo

    save_turbo(build_turbo(work), out)


def _sd(work: Path, out: Path) -> None:
    from genalign.lab.sd import build_sd

    _save_pipeline(build_sd(work), out)


def _save_pipeline(pipeline: Any, out: Path) -> None:
    """fp16 weights; transformers loads in the dtype its config names, diffusers in fp32, so the configs say fp32.

    The folders that parts were loaded from are left out: they are of the machine that built it.
    """
    import torch

    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    for path in out.glob("text_encoder*/config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    for path in (out / "model_index.json", *out.glob("*/config.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def _clip(work: Path, out: Path) -> None:
    from genalign.lab.clip import build_clip, save_clip

    save_clip(*build_clip(work), out)


def _clap(work: Path, out: Path) -> None:
    from genalign.lab.music_clap import build_clap, save_clap

    save_clap(*build_clap(work), out)


def _judge(work: Path, out: Path) -> None:
    from genalign.lab.judge import build_judge, save_judge

    save_judge(build_judge(work), out)


def _video_judge(work: Path, out: Path) -> None:
    from genalign.lab.moves_judge import build_judge, save_judge

    save_judge(build_judge(work), out)


def _video_reward(work: Path, out: Path) -> None:
    from genalign.lab.video_reward import build_video_reward

    build_video_reward(work, out)


def _text_head(work: Path, out: Path) -> None:
    from genalign.lab.text_head import build_text_head, save_text_head

    save_text_head(*build_text_head(work), out)


def _captions(work: Path, out: Path) -> None:
    from genalign.lab.text_head import build_preferences

    build_preferences(out)


def _subject(work: Path, out: Path) -> None:
    from genalign.lab.subject import build_subject

    build_subject(out)


def _expander(work: Path, out: Path) -> None:
    from genalign.lab.expander import build_expander, save_expander

    save_expander(*build_expander(work), out)


def _vlm_judge(work: Path, out: Path) -> None:
    from genalign.lab.vlm import build_vlm, save_vlm

    save_vlm(*build_vlm(work), out)


def _questions(work: Path, out: Path) -> None:
    from genalign.lab.questions_files import build_questions

    build_questions(out)


def _vlm(work: Path, out: Path) -> None:
    from genalign.lab.vlm_policy import build_policy, save_policy

    save_policy(*build_policy(work), out)


BUILDERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "world": ("emojiworld", _world),
    "moves": ("emojimoves", _moves),
    "melodies": ("melodyworld", _melodies),
    "sums": ("sumworld", _sums),
    "captions": ("emojiworld", _captions),
    "subject": ("emojiworld/subject", _subject),
    "flow": ("tiny-flow", _flow),
    "turbo": ("tiny-turbo", _turbo),
    "video": ("tiny-video", _video),
    "music": ("tiny-music", _music),
    "music-judge": ("tiny-music-judge", _music_judge),
    "sd": ("tiny-sd", _sd),
    "clip": ("tiny-clip", _clip),
    "clap": ("tiny-clap", _clap),
    "judge": ("tiny-judge", _judge),
    "video-judge": ("tiny-video-judge", _video_judge),
    "video-reward": ("tiny-video-reward", _video_reward),
    "text-head": ("tiny-text-head", _text_head),
    "expander": ("tiny-expander", _expander),
    "lm": ("tiny-lm", _lm),
    "mdlm": ("tiny-mdlm", _mdlm),
    "vlm-judge": ("tiny-vlm-judge", _vlm_judge),
    "questions": ("emojiworld/questions", _questions),
    "vlm": ("tiny-vlm", _vlm),
}


def _font(font: Path | None, wanted: str) -> Path:
    if font is None or not font.exists():
        raise UsageError(f"this part needs --font PATH, {wanted}")
    return font


def main(name: str, out: Path | None = None, work: Path | None = None, font: Path | None = None) -> None:
    """Build one part, and write its model card. "sprites" and "melody-bank" are drawn and rendered from a `font`: Noto
    Color Emoji's .ttf, and a General MIDI sound font's .sf2.

    Args:
        out: where to write; default: its folder in assets/.
        work: checkpoints of the training, so that a killed build resumes; default: runs/lab.

    Raises:
        UsageError: unknown name, or a font that is needed and not there.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if name == "sprites":
        from genalign.lab.sprites import build_sheet

        build_sheet(_font(font, "the NotoColorEmoji.ttf of the Noto fonts"), out or shipped("assets", "emojiworld"))
        return
    if name == "melody-bank":
        from genalign.lab.melody_bank import build_bank

        build_bank(_font(font, "the FluidR3_GM.sf2 of fluid-soundfont-gm"), out or shipped("assets", "melodyworld"))
        return
    if name not in BUILDERS:
        raise UsageError(
            f"unknown part {name!r}; genalign lab build knows sprites, melody-bank, base-rows, {', '.join(BUILDERS)}"
        )
    folder_name, builder = BUILDERS[name]
    target = out or shipped("assets", folder_name)
    work = work or Path("runs/lab")
    work.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    builder(work, target)
    if folder_name.startswith("tiny-"):
        from genalign.lab.cards import write_card

        write_card(target, folder_name)
