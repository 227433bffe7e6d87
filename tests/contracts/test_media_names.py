"""No file asks for a medium by name but those of media/, the types, and what is of one medium by its nature."""

import ast
from pathlib import Path

import pytest

import genalign
from genalign.media import MEDIA
from genalign.media.medium import Medium
from genalign.types import MODALITIES

PACKAGE = Path(genalign.__file__).parent
ROOMS = ("media/", "types/", "lab/")  # lab: a world of pictures

HEAD = "a reward that reads one medium"
POLICY = "a policy says what it makes"
COLUMN = "the columns of other people's data files"
JUDGE = "a judge model is shown pictures and texts"
PAIRS = "which given pairs a method learns from: those of a forward process, or of a sequence of tokens"
REASONS = {
    "cli/table_cells.py": "which recipes stand in which table, by how their names begin",
    "data/clips.py": "clips of prompts are decoded when they are read",
    "data/comparisons.py": "a value that is no text is a picture",
    "data/conversations.py": "the keys of a message's parts",
    "data/forms.py": COLUMN,
    "data/judged.py": "a value that is not a file is text, and bytes are an image",
    "data/prompts.py": "the columns `image`, `video` and `audio` of a prompts file",
    "demo/align.py": "a grid is a picture",
    "demo/choice.py": "tiny-clip reads pictures",
    "demo/cards.py": "pictures alone are laid over each other",
    "demo/exchange.py": "a text stands in the row itself, another sample in a file",
    "demo/found.py": "the key `text` of a node of ComfyUI",
    "demo/inspect.py": "a grid is a picture",
    "demo/room.py": "the features of --disputed are those of pictures",
    "demo/markup.py": "a text is no file to be carried inside",
    "demo/tab_draw.py": "texts have tokens and no guidance",
    "method/forward_preference.py": PAIRS,
    "method/kto.py": PAIRS,
    "method/pairs.py": PAIRS,
    "method/search/best_of_n.py": "a vote is over what texts answer",
    "method/search/value_sampling.py": "a value of tokens, of whom a text is made",
    "method/preference.py": PAIRS,
    "method/settings.py": PAIRS,
    "policy/__init__.py": "what a model makes is read from its folder",
    "policy/chain.py": POLICY,
    "policy/clip_form.py": "clips alone have a count and a rate of frames",
    "policy/inputs.py": "where a prompt's media become a pipeline's arguments",
    "policy/language/chat.py": "the parts of a message that are text",
    "policy/language/template.py": "the parts of a message that are text",
    "policy/language/policy.py": POLICY,
    "policy/unmasking/policy.py": POLICY,
    "policy/language/processor.py": "which argument of a processor takes which medium, and how it is handed over",
    "policy/tracks.py": "where a pipeline's output becomes tracks",
    "reward/base.py": "what heads of images share",
    "reward/fit/backbones.py": "which backbone reads which medium",
    "reward/fit/backbone_settings.py": "which backbone reads which medium",
    "reward/fit/transformer_features.py": "which backbone reads which medium",
    "reward/bridge.py": "TRL's columns of pictures, and completions that are texts",
    "reward/fit/noisy.py": "the keys of its own settings",
    "reward/function.py": "the names under which TRL's functions are given completions",
    "reward/heads/text_features.py": "which towers of a model hold positions of another kind",
    "reward/heads/aesthetic.py": HEAD,
    "reward/heads/audio.py": HEAD,
    "reward/heads/blip.py": HEAD,
    "reward/heads/classifier.py": HEAD,
    "reward/heads/clip.py": HEAD,
    "reward/heads/clip_delta.py": HEAD,
    "reward/heads/clip_texts.py": HEAD,
    "reward/heads/exemplars.py": HEAD,
    "reward/heads/head.py": HEAD,
    "reward/heads/hpsv3.py": HEAD,
    "reward/heads/image_class.py": HEAD,
    "reward/heads/motion.py": HEAD,
    "reward/heads/qwen.py": HEAD,
    "reward/heads/raft.py": HEAD,
    "reward/heads/answers.py": HEAD,
    "reward/heads/rules.py": HEAD,
    "reward/heads/sharpness.py": HEAD,
    "reward/heads/sound.py": HEAD,
    "reward/heads/sound_features.py": HEAD,
    "reward/heads/structured.py": HEAD,
    "reward/heads/videoreward.py": HEAD,
    "reward/heads/videoscore.py": HEAD,
    "reward/heads/waves.py": HEAD,
    "reward/judge/asking.py": JUDGE,
    "reward/judge/base.py": JUDGE,
    "reward/judge/comparing.py": JUDGE,
    "reward/judge/endpoint.py": JUDGE,
    "reward/judge/judges.py": JUDGE,
    "reward/judge/local.py": JUDGE,
    "reward/judge/questions.py": JUDGE,
    "reward/runtime/environment.py": "a language model's turns are texts",
    "reward/runtime/serving.py": "the key `text` of a prompt in a JSON request",
    "reward/runtime/wire.py": "the key `text` of a prompt in a frame",
    "reward/sets/reward.py": HEAD,
    "run/build.py": "given answers are checked with their prompts; one question about two pictures is two",
    "run/memory.py": "a language model draws nothing and decodes nothing",
    "run/fits.py": "a language model has no forward process and no noise",
}


def named(source: str) -> list[int]:
    """Lines where a string is exactly the name of a medium."""
    tree = ast.walk(ast.parse(source))
    return [node.lineno for node in tree if isinstance(node, ast.Constant) and node.value in MODALITIES]


def test_the_search_finds_every_form_of_asking() -> None:
    forms = ('if "image" in media: pass', 'media["video"]', "modality == 'text'", "x.get('audio')", "f = {'image': 1}")
    assert [named(form) for form in forms] == [[1]] * len(forms)
    assert named('"""An image of text."""\nx = "images"') == []


def test_no_other_file_asks_for_a_medium_by_name() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(ROOMS) and "_shipped" not in name and (lines := named(path.read_text())):
            found[name] = lines
    new = {name: lines for name, lines in found.items() if name not in REASONS}
    assert not new, f"look the medium up in genalign.media.MEDIA, or give the reason in this test: {new}"
    assert sorted(set(REASONS) - set(found)) == []  # a reason that is no longer needed goes


@pytest.mark.parametrize("name", MODALITIES)
def test_every_modality_has_its_medium(name: str) -> None:
    wanted = [member for member in dir(Medium) if not member.startswith("_")] + ["SUFFIXES", "RANGE"]
    assert {"read", "write", "sheet", "symptoms", "distance", "extent", "decode", "element", "cell"} <= set(wanted)
    assert [member for member in wanted if not hasattr(MEDIA[name], member)] == []


def test_a_suffix_belongs_to_one_medium() -> None:
    suffixes = [suffix for medium in MEDIA.values() for suffix in medium.SUFFIXES]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in suffixes)
