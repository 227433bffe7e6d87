"""What docs/, AGENTS.md and CONTRIBUTING.md say is true: commands, links, examples, tables, and the list of files."""

import contextlib
import json
import re
import shlex
import tomllib
from importlib import import_module
from importlib.util import find_spec

import pytest
import yaml
from PIL import Image

from genalign import build_reward, load_recipe
from genalign.cli import table_pages
from genalign.cli.main import _parser, main, parse
from genalign.data.forms import FORMS
from genalign.data.prompts import read_prompts
from genalign.evaluation.trial import metrics_of
from genalign.files.shipped import shipped
from genalign.media.film import write_video
from genalign.method import FAMILIES, MethodSettings
from genalign.reward import PRESETS as REWARDS
from genalign.reward.build import HEADS, KINDS
from genalign.reward.fit.recipe import load_fit_recipe
from genalign.reward.fit.train import Fit
from genalign.run.build import build
from genalign.run.recipe import Recipe
from tests.contracts.tree import PAGE, ROOT, files, tree
from tests.helpers.clips import bouncing, gliding
from tests.helpers.tiny_videos import RATE
from tests.helpers.video_policies import BOTH

DOCS = sorted((ROOT / "docs").rglob("*.md"))
TOP = [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [path.relative_to(ROOT).as_posix() for path in [*TOP, *DOCS]]
METHODS = sorted(path for path in (ROOT / "docs" / "methods").glob("*.md") if path.name != "README.md")
LOSSES = ("dpo", "kto")  # values of a setting, on pages that log one thing or the other
PARTS = ["Loss", "Run it", "What it logs", "Departs from the papers", "Measured"]

# Commands in running text are read, not run; each begins with one of these. Commands in blocks are run: README's by
# test_readme.py, those of docs/ below.
NOT_RUN = {
    "genalign train image-": "minutes of training; test_shipped_recipes.py trains every recipe for two steps",
    "genalign train sd35-": "needs a model from the hub; tests/run/test_memory.py asks for its plan",
    "genalign train sdxl-": "needs a model from the hub; test_recipes_of_bases.py runs a tiny one",
    "genalign train flux2-": "as sdxl-",
    "genalign train z-image-": "as sdxl-",
    "genalign train qwen-image-": "as sdxl-",
    "genalign sample sdxl-": "as sdxl-",
    "genalign train text-": "as image-",
    "genalign train vlm-": "minutes of training; test_shipped_recipes.py trains every recipe for two steps",
    "genalign train mdlm-": "as image-",
    "genalign train music-": "as image-",
    "genalign train mine.yaml": "a recipe of one's own",
    "genalign train video-": "as image-, some with a model of the hub, for which a tiny one of its form stands there",
    "genalign train av-": "needs a model of video and sound from the hub; as above",
    "genalign sample image-": "a search with the recipe's whole budget; tests/cli/test_search.py runs small ones",
    "genalign sample text-": "needs a language model from the hub; tests/method/search/test_value_sampling.py",
    "genalign sample video-": "as above; test_shipped_recipes.py runs small ones",
    "genalign sample RUN": "needs a trained run",
    "genalign eval RUN": "needs a trained run; test_readme.py and tests/cli/test_evaluate.py evaluate one",
    "genalign eval runs/": "as above",
    "genalign export RUN": "needs a trained run; tests/cli/test_export.py and test_comfyui.py",
    "genalign demo": "a server does not end; tests/demo/test_serve.py and test_page.py",
    "genalign fit-reward": "minutes; test_readme.py runs a small image-nrg, tests/reward/fit/test_fitted.py the others",
    "genalign eval-reward REWARD": "a pattern with placeholders",
    "genalign serve-reward": "a server does not end; tests/reward/runtime/test_serving.py",
    "genalign cp": "tests/cli/test_main.py",
    "genalign ls": "tests/cli/test_main.py",
    "genalign lab build": "trains a shipped model for minutes to hours",
    "make ": "targets of the Makefile: environments, trainings of minutes to hours, the tests themselves",
    "python -m tests.bench": "12 to 40 minutes of one core; `make bench`",
    "python -m tests.": "writes a table that another test compares",
    "python -m genalign": "hours of training",
    "pytest ": "a test that runs anyway",
    "accelerate launch": "test_two_ranks.py",
    "pip install": "test_packaging.py installs",
}


def text_of(page):
    return (ROOT / page).read_text()


def blocks(page, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def commands(page):
    """Commands in backticks, and those lines of blocks that no test runs (see `run_by_tests`)."""
    text = text_of(page)
    fenced = "".join(blocks(page, "bash") + blocks(page, "")).splitlines()
    lines = [line.partition(" #")[0].strip() for line in fenced if not run_by_tests(page, line)]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    programs = ("genalign", "make", "python", "pytest", "accelerate", "pip")
    return [words for words in [*lines, *spans] if " " in words and words.split()[0] in programs]


def run_by_tests(page, line):
    return line.startswith("genalign ") and page in ("README.md", "docs/rewards.md", "docs/data.md")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_can_be_run_as_they_stand(page, elsewhere):
    for command in commands(page):
        words = shlex.split(command)
        spoken_of = words[0] == "genalign" and all(word.startswith("--") for word in words[2:])  # a verb, its options
        if spoken_of:
            known = {"--help"} if words[1] == "--help" else options(words[1])
            assert known.issuperset(words[2:]), command
            continue
        assert any(command.startswith(prefix) for prefix in NOT_RUN), f"{command}: run it in a block, or say why not"
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", text_of("Makefile"), re.MULTILINE), command
        elif words[0] == "pytest":
            assert (ROOT / words[1]).exists(), command
        elif words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), command
        elif words[0] == "genalign":
            check_arguments(words[1:])


def check_arguments(words):
    """The command line reads them; a shipped recipe takes its overrides."""
    args = parse(words)
    recipe = getattr(args, "recipe", None) or getattr(args, "source", None)
    if recipe and shipped("pipelines", f"{recipe}.yaml").is_file():
        load_recipe(recipe, args.overrides)


def verbs():
    return next(action for action in _parser()._actions if action.choices).choices


def options(verb):
    return {option for action in verbs()[verb]._actions for option in action.option_strings}


@pytest.mark.timeout(600)
def test_commands_about_rewards_run(elsewhere, capsys):
    (block,) = blocks("docs/rewards.md", "bash")
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "genalign"
        assert main(words[1:]) == 0, (line, capsys.readouterr().err)


@pytest.mark.timeout(600)
def test_labelled_pairs_are_drawn_labelled_and_trained_on(elsewhere, capsys):
    """The commands of docs/data.md, with labels written between them as the page says."""
    (block,) = [block for block in blocks("docs/data.md", "bash") if "--rollout" in block]
    drawn, *trained = [shlex.split(line) for line in block.splitlines()]
    (elsewhere / "prompts.txt").write_text("two red apples\none star\n")
    assert main(drawn[1:]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (elsewhere / "drawn/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    pairs = [
        {"prompt": a["prompt"], "chosen_seed": a["seed"], "rejected_seed": b["seed"]}
        | {key: a[key] for key in ("model", "sampler")}
        for a, b in zip(rows[::2], rows[1::2], strict=True)
    ]
    (elsewhere / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    small = ["data.prompts_per_step=2", "train.steps=1", "eval=null"]
    assert len(trained) == 2
    for k, words in enumerate(trained):
        assert main([*words[1:], *small, "--out", f"run-{k}"]) == 0, capsys.readouterr().err
        assert (elsewhere / f"run-{k}/adapter/adapter_model.safetensors").is_file()


@pytest.mark.timeout(600)
def test_own_pictures_and_clips_are_trained_on(elsewhere, capsys):
    """The commands of docs/data.md, on files and tiny recipes of the kinds that the page says."""
    (block,) = [block for block in blocks("docs/data.md", "bash") if "method.name=sft" in block]
    own_files(elsewhere / "own")
    for name, family in (("video", "wan"), ("i2v", "wan-i2v")):
        BOTH[family].build().save_pretrained(elsewhere / family)
        policy = {"model": family, "frame_rate": RATE, "batch_size": 2, "call": BOTH[family].call}
        recipe = {
            "policy": policy,
            "data": {"prompts": "none.txt"},
            "reward": "none.py:none",
            "method": {"name": "nft"},
        }
        (elsewhere / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    small = ["data.prompts_per_step=2", "train.steps=1", "eval=null"]
    lines = block.splitlines()
    assert len(lines) == 4
    for k, line in enumerate(lines):
        words = shlex.split(line, comments=True)
        assert main([*words[1:], *small, "--out", f"run-{k}"]) == 0, (line, capsys.readouterr().err)
        assert (elsewhere / f"run-{k}/adapter/adapter_model.safetensors").is_file()


def own_files(folder):
    """Pictures with captions beside them, and lists of clips, of pairs, and of clips that begin with a picture."""
    (folder / "pictures").mkdir(parents=True)
    for name, grey in (("x", 60), ("y", 180)):
        Image.new("RGB", (64, 64), (grey,) * 3).save(folder / "pictures" / f"{name}.png")
        Image.new("RGB", (16, 16), (grey,) * 3).save(folder / f"{name}.png")
        (folder / "pictures" / f"{name}.txt").write_text(f"a {name}")
    write_video(gliding(), RATE, folder / "a.mp4")
    write_video(bouncing(), RATE, folder / "b.webm")
    lists = {
        "clips": [{"video": "a.mp4"}, {"video": "b.webm"}],
        "pairs": [{"chosen": "a.mp4", "rejected": "b.webm"}, {"chosen": "b.webm", "rejected": "a.mp4"}],
        "animated": [{"image": "x.png", "video": "a.mp4"}, {"image": "y.png", "video": "b.webm"}],
    }
    for name, rows in lists.items():
        text = "".join(json.dumps({"prompt": f"it moves {k}", **row}) + "\n" for k, row in enumerate(rows))
        (folder / f"{name}.jsonl").write_text(text)
    return folder


# ---- examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run(page, elsewhere):
    for code in blocks(page, "python") if page != "README.md" else []:  # README's: test_readme.py
        exec(compile(code, page, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES)
def test_yaml_examples_are_rewards_fits_or_sections_of_a_recipe(page, elsewhere):
    for k, text in enumerate(blocks(page, "yaml")):
        plain = yaml.safe_load(text)
        if set(KINDS) & set(plain):
            assert build_reward(plain, shipped("rewards")).aspects
        elif set(plain) <= set(Recipe.model_fields):  # sections of a recipe
            keys = [f"{name}.{key}={json.dumps(value)}" for name, keys in plain.items() for key, value in keys.items()]
            assert build(load_recipe("image-nft", keys)).recipe.eval is not None
        else:
            (elsewhere / f"{k}.yaml").write_text(text)
            recipe, _ = load_fit_recipe(f"{k}.yaml")
            assert recipe.data.file == plain["data"]["file"]


@pytest.mark.parametrize("page", PAGES)
def test_json_examples_are_rows_of_prompts(page, elsewhere):
    for text in blocks(page, "json"):
        (elsewhere / "prompts.jsonl").write_text(text)
        for name in re.findall(r"\w+\.png", text):
            Image.new("RGB", (8, 8)).save(elsewhere / name)
        prompts = read_prompts(elsewhere / "prompts.jsonl")
        assert len(prompts) == len(text.strip().splitlines())
        assert prompts.rows[0].facts


# ---- links, tables, files -------------------------------------------------------------------------------------------


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them of words, digits and hyphens."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    assert links or page.startswith(("docs/families", "docs/tree", "SECURITY"))
    for link in links:
        if link.startswith("http"):
            continue
        assert not link.startswith("/"), link
        place, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / place).resolve() if place else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_that_are_spoken_of_are_there(page):
    for place in re.findall(r"`((?:genalign|tests|pipelines|assets|docs)/[\w./-]*)`", text_of(page)):
        assert "NAME" in place or (ROOT / place).exists(), place


def test_every_page_is_reached_from_the_index():
    pages = "".join(text_of(path) for path in ("docs/README.md", "docs/methods/README.md"))
    for path in DOCS:
        if path.name != "README.md":
            assert f"]({path.name})" in pages or f"]({path.relative_to(ROOT / 'docs')})" in pages, path


def test_tables_are_those_of_the_measurements():
    done = json.loads((ROOT / "assets" / "table.json").read_text())
    marked = [path for path in table_pages.pages() if table_pages.MARKED.search(path.read_text())]
    assert {ROOT / "README.md", ROOT / "docs" / "results.md"} < set(marked)
    for path in marked:
        assert table_pages.filled(path.read_text(), done) == path.read_text(), f"write {path} again: make table"
    assert len(re.findall(r"^\| `image-", (ROOT / "README.md").read_text(), re.MULTILINE)) == table_pages.BEST


def test_tree_names_every_file_and_no_other():
    named = set()
    folder = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            folder = line.removeprefix("## ")
        elif line.startswith("| `"):
            named.add(folder + line.split("`")[1])
    assert named == {path.as_posix() for path in files()}, "write it again: python -m tests.contracts.tree"
    assert PAGE.read_text() == tree(), "write it again: python -m tests.contracts.tree"


def test_the_citation_is_of_this_version():
    """CFF 1.2.0: what its schema requires, and the version and licence of the package."""
    citation = yaml.safe_load(text_of("CITATION.cff"))
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == project["name"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert all(author["name"] for author in citation["authors"])
    assert project["version"] in text_of("CHANGELOG.md")


# ---- methods --------------------------------------------------------------------------------------------------------


def test_every_family_of_methods_has_a_page():
    titles = {path: path.read_text().splitlines()[0] for path in METHODS}
    named = {path: set(re.findall(r"`([\w+-]+)`", title)) for path, title in titles.items()}
    expected = {frozenset(family.presets) for family in FAMILIES}
    assert {frozenset(names) for names in named.values()} == expected, "one page a family, its presets in the title"


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_page_has_its_parts_and_shows_every_recipe_that_runs_it(path):
    text = path.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    names = set(re.findall(r"`([\w-]+)`", text.splitlines()[0]))
    runs = " ".join(text.split("## Run it")[1].split("## What it logs")[0].split())
    for recipe in shipped("pipelines").glob("*.yaml"):
        if load_recipe(recipe).method.name in names:
            assert f" {recipe.stem}" in runs, recipe.stem


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_page_names_settings_that_exist(path):
    names = re.findall(r"`([\w-]+)`", path.read_text().splitlines()[0])
    fields = set(MethodSettings(name=names[0]).__class__.model_fields)
    for key in re.findall(r"`method\.(\w+)", path.read_text()):
        assert key in fields, key


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_page_names_what_is_logged(path):
    source = "".join(file.read_text() for file in (ROOT / "genalign" / "method").rglob("*.py"))
    part = path.read_text().split("## What it logs")[1].split("## Departs")[0]
    for key in re.findall(r"`([\w/]+)`", part):
        assert f'"{key}"' in source or any(key in family.model_fields for family in FAMILIES) or key in LOSSES, key


# ---- rewards and data -----------------------------------------------------------------------------------------------

HERE = (
    *("HARMO", "Vision-R1", "LaV-CoT"),
    *("G-RA", "Constrained RLHF", "Dynamic Reward Weighting", "Skywork-Reward-V2", "RewardAnything"),
    *("Reward Model Ensembles", "Reward-Robust RLHF", "STARC", "RewardBench 2", "PAR", "ToolRL", "Secrets of RLHF II"),
    *("DPA", "MODPO", "MiCRo", "VPL", "PAL", "Value Augmented Sampling"),
)
ABSENT = ("URPO", "Cooper", "Meta Policy Optimization", "POLAR", "Themis", "FSPO")


def is_there(span):
    """Whether what the page names exists: a key or a name of reward files, a setting, a function, a verb."""
    if span.startswith("genalign "):
        return span.removeprefix("genalign ") in verbs()
    if span.startswith("use: "):
        return span.removeprefix("use: ") in {*HEADS, *REWARDS}
    place, _, value = span.partition(": ")
    section, _, key = place.partition(".")
    if section == "method":
        known = any(key in family.model_fields for family in FAMILIES)
        return known and (not value or bool(MethodSettings(name="grpo", **{key: value})))
    if section in Fit.model_fields:
        return bool(Fit.model_validate({section: {key: value}}))
    if not key:
        return span in KINDS
    homes = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "genalign/reward").rglob(f"{section}.py")]
    return any(callable(getattr(import_module(".".join(home.parts)), key, None)) for home in homes)


def test_papers_are_a_component_or_deliberately_absent():
    """Each paper of the two groups is in one of the two lists, and each component that the page names exists."""
    rows = text_of("docs/rewards.md").split("| paper | component |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    papers, components = zip(*(row.strip("| ").split(" | ") for row in rows), strict=True)
    assert [paper.split(",")[0] for paper in papers] == list(HERE)
    for component in components:
        spans = re.findall(r"`([^`]+)`", component)
        assert spans
        assert all(is_there(span) for span in spans), component
    for wrong in ("gaet", "use: skywrk", "votes.how: flap", "head.kind: poll", "measures.stark", "method.objectiv"):
        with contextlib.suppress(AttributeError, ValueError):
            assert not is_there(wrong), wrong
    absent = text_of("docs/absent.md")
    assert all(name in absent for name in ABSENT)
    assert not any(re.search(rf"\b{re.escape(name)}\b", absent) for name in HERE)


def test_every_key_and_name_of_reward_files_is_on_the_page():
    page = text_of("docs/rewards.md")
    for name in {*KINDS, *HEADS, *REWARDS} - {"judge", "hpsv2"}:  # the lab's judge is never a reward; hpsv2.1 is newer
        assert f"`{name}`" in page or f"`{name}:" in page, name


def test_every_form_of_judged_samples_is_on_the_page():
    rows = text_of("docs/data.md").split("## Judged samples")[1]
    for form in FORMS:
        (row,) = [line for line in rows.splitlines() if line.startswith(f"| {form.name} |")]
        assert all(f"`{column}`" in row for column in form.columns), form.name


def test_method_pages_are_all_in_the_index():
    links = text_of("docs/methods/README.md")
    assert all(f"]({path.name})" in links for path in METHODS)


@pytest.mark.parametrize(
    ("page", "heading", "recipes"),
    [
        ("docs/vlm.md", "| | before | rule alone", ["vlm-grpo", "vlm-grpo-hybrid"]),
        ("docs/vlm.md", "| | before | after |", ["vlm-vision-r1"]),
        ("docs/text.md", "| command | `right_answer` before", ["text-grpo", "text-dpo", "text-simpo", "text-kto"]),
        ("docs/text.md", "| command | `asked_form` before", ["mdlm-grpo", "mdlm-dpo"]),
    ],
)
def test_measured_tables_have_the_metrics_that_their_recipes_print(page, heading, recipes):
    table = (heading + text_of(page).split(heading)[1]).split("\n\n")[0]
    named = {name for name in re.findall(r"`([^`]+)`", table) if not name.startswith("genalign ")}
    assert len(named) > 1
    for recipe in recipes:
        built = build(load_recipe(recipe))
        printed = {name for reward in [*built.eval_rewards, *built.held_out] for name in metrics_of(reward)}
        assert named <= printed, (recipe, named - printed)
