"""What a file or a request may name. One test a row of the table in SECURITY.md, called after it.

Everything here is harmless: code that would write a marker file, an address of this machine where nobody should call,
a neighbour's file of plain text.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from PIL import EpsImagePlugin, Image
from safetensors.torch import load_file, save_file

from genalign.cli.export import export
from genalign.cli.main import main
from genalign.data.comparisons import read_comparisons
from genalign.data.judged import Comparisons
from genalign.data.preferences import find_pairs
from genalign.data.prompts import read_prompts
from genalign.data.tables import _from_hub
from genalign.evaluation.card import write_card
from genalign.evaluation.evaluate import EvalSettings, evaluate
from genalign.evaluation.report import write_report
from genalign.files.shipped import shipped
from genalign.media import audio
from genalign.media.container import load_sound, load_video
from genalign.media.image import PICTURES, load_png
from genalign.policy.language import load_language
from genalign.policy.load import load_diffusion
from genalign.policy.settings import PolicySettings
from genalign.reward import Sharpness, build_reward
from genalign.reward.base import ScoringError
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.fit.fitted import FittedReward, save_fitted
from genalign.reward.fit.train import Fit, build_head
from genalign.reward.heads.clip import ClipReward
from genalign.reward.heads.exemplars import read_exemplars
from genalign.reward.heads.head import HeadReward
from genalign.reward.heads.rules import Length
from genalign.reward.heads.weights import from_hub, read_weights
from genalign.reward.judge.comparing import drawn_files
from genalign.reward.judge.local import LocalModel
from genalign.reward.runtime.process import ProcessReward
from genalign.reward.runtime.serving import application
from genalign.reward.runtime.web import Web
from genalign.reward.runtime.wire import FRAME, pack_batch, send
from genalign.run.copies import Copy, fetched
from genalign.run.folder import load_run
from genalign.run.recipe import load_recipe
from genalign.run.trackers import start_trackers
from genalign.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from genalign.types import GenalignError, Media, Prompt, Track, UsageError
from tests.helpers import tiny_gguf
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.tiny_recipe import image_model, write_recipe
from tests.helpers.toy_judges import serving
from tests.helpers.toy_rewards import images, prompts

ROOT = Path(__file__).parents[2]
TEXT = PolicySettings(model="-")
PICTURE = PolicySettings.model_validate({"model": "-", "sampler": {"kernel": "ode", "steps": 1}})


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that `leaves` makes, with the number of the process that ran it."""
    return tmp_path / "marker.txt"


def leaves(marker: Path, more: str = "") -> str:
    """Python that writes the marker when it is run or imported."""
    return f"import os\nfrom pathlib import Path\nPath({str(marker)!r}).write_text(str(os.getpid()))\n{more}\n"


@dataclass
class Listener:
    """A server of this machine that keeps what it was asked for, and with which headers."""

    url: str
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def listener() -> Iterator[Listener]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())

        do_POST = do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    heard = Listener(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield heard
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def asked_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a library asks its user, who says yes to everything."""
    questions: list[str] = []

    def answer(question: str = "") -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    return questions


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch.load was called with."""
    found: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (found.append(a), load(*a, **k))[1])
    return found


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, format="PNG")
    return out.getvalue()


def change(file: Path, **keys: Any) -> None:
    """Set keys of a JSON file; a key may name one within another, as a__b."""
    told = json.loads(file.read_text()) if file.exists() else {}
    for key, value in keys.items():
        *parents, last = key.split("__")
        place = told
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    file.write_text(json.dumps(told))


def lines(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def pipeline(folder: Path) -> Path:
    shutil.copytree(image_model(), folder)
    return folder


def asset(name: str, folder: Path) -> Path:
    shutil.copytree(shipped("assets", name), folder)
    return folder


# ---- recipes and run folders ----------------------------------------------------------------------------------------


def test_recipe_function(tmp_path: Path, marker: Path) -> None:
    code = "from genalign.reward import reward\n@reward\ndef bright(images):\n    return [1.0 for _ in images]\n"
    (tmp_path / "mine.py").write_text(leaves(marker, code))
    reward = build_reward("mine.py:bright", tmp_path)
    assert reward(prompts(1), images(1)).total.tolist() == [1.0]
    assert marker.read_text() != str(os.getpid())


def test_recipe_module(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code by its module's address, also where it is installed; as a reward, a part of one, exemplars or a template."""
    (tmp_path / "a_module_of_mine.py").write_text(leaves(marker, "TEXT = '{text_prompt}'\ndef touch(**settings): ..."))
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"use": "a_module_of_mine:touch"}
    clip = {"use": "similarity", "model": "tiny-clip", "exemplars": "a_module_of_mine:touch"}
    for spec in (named, named["use"], {"sum": [named, "sharpness"]}, {**named, "run": {"on": "thread"}}, clip):
        with pytest.raises(UsageError):
            build_reward(spec, tmp_path)
    with pytest.raises(UsageError):
        build_reward({**named, "run": {"on": "process"}}, tmp_path).aspects  # noqa: B018
    (tmp_path / "template.py").write_text(leaves(marker, "TEXT = 'read but never run: {text_prompt}'"))
    template = {"use": "hpsv3", "model": str(tmp_path), "base": "some/model", "template": "template.py:TEXT"}
    with pytest.raises(UsageError, match="lacks"):
        build_reward(template, tmp_path)
    assert not marker.exists()


def test_recipe_yaml(tmp_path: Path, marker: Path) -> None:
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath [{marker}]]"
    plain = write_recipe(tmp_path / "run")
    own = yaml.safe_load(plain.read_text())
    plain.write_text(yaml.safe_dump({key: value for key, value in own.items() if key != "reward"}) + f"reward: {tag}\n")
    with pytest.raises(UsageError, match="is not YAML"):
        load_recipe(plain)
    with pytest.raises(UsageError, match="is not YAML"):
        write_card(tmp_path / "run")
    with pytest.raises(UsageError, match="is not YAML"):
        load_recipe(write_recipe(tmp_path / "other"), [f"train.seed={tag}"])
    (tmp_path / "reward.yaml").write_text(f"use: {tag}\n")
    with pytest.raises(UsageError, match="is not YAML"):
        build_reward("reward.yaml", tmp_path)
    assert not marker.exists()


def test_recipe_files_to_read(tmp_path: Path) -> None:
    """Wherever its author says: beside it, elsewhere by an absolute path, or up and down again."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "asked.txt").write_text("a\nb\nc\n")
    for name in ("../elsewhere/asked.txt", str(tmp_path / "elsewhere" / "asked.txt")):
        recipe = load_recipe(write_recipe(tmp_path / "own", data={"prompts": name}))
        assert len(read_prompts(recipe.folder / recipe.data.prompts)) == 3
        assert recipe.resolved()["data"]["prompts"] == str(tmp_path / "elsewhere" / "asked.txt")


class Grey:
    """Draws one picture, whatever it is asked."""

    modalities = frozenset({"image"})
    guided = True

    def weights(self, which: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], **settings: Any) -> Media:
        return Media(image=Track(torch.full((len(prompts), 3, 8, 8), 0.5)))


def test_recipe_files_to_write(tmp_path: Path) -> None:
    weights, notes = tmp_path / "weights.safetensors", tmp_path / "notes.txt"
    save_file({"layer": torch.ones(2)}, weights)
    notes.write_text("mine\n")
    before = weights.read_bytes()
    for file in (weights, notes):
        settings = EvalSettings(prompts="-", guidance=[1.0], seeds=[0], base_cache=str(file), training_prompts=0)
        with pytest.raises(UsageError, match="name another"):
            evaluate(Grey(), prompts(2), [Sharpness()], [], settings, tmp_path)
    spec = {"use": "sharpness", "run": {"cache": "notes.txt"}}
    with pytest.raises(UsageError, match="cannot be used as a cache"):
        build_reward(spec, tmp_path)(prompts(1), images(1))
    assert (weights.read_bytes(), notes.read_text()) == (before, "mine\n")


def test_recipe_key(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("A_KEY_OF_MINE", "secret-123")
    monkeypatch.setenv("ANOTHER_KEY", "secret-456")
    Web(listener.url, key="A_KEY_OF_MINE").request("GET", "/asked")
    assert f"A_KEY_OF_MINE goes to {listener.url}" in caplog.text
    assert "secret" not in caplog.text
    (_, headers) = listener.asked[0]
    assert headers["authorization"] == "Bearer secret-123"
    assert "secret-456" not in json.dumps(headers)
    with pytest.raises(UsageError, match="not set"):
        Web(listener.url, key="A_KEY_OF_NOBODY")

    from fastapi import FastAPI
    from fastapi.responses import RedirectResponse

    app = FastAPI()
    app.get("/away")(lambda: RedirectResponse(f"{listener.url}/caught", 302))
    with serving(app) as url, pytest.raises(ScoringError, match="answered 302"):
        Web(url, key="A_KEY_OF_MINE", retries=0).request("GET", "/away")
    assert [path for path, _ in listener.asked] == ["/asked"]


def test_recipe_copy(tmp_path: Path) -> None:
    """What is sent is the run's own: no link is followed. fsspec's wrappers of file systems are no folder's URL."""
    run, there = tmp_path / "run", tmp_path / "there"
    (run / "checkpoint-1").mkdir(parents=True)
    (run / "recipe.yaml").write_text("policy: {}\n")
    (run / "checkpoint-1" / "manifest.json").write_text("{}")
    (run / ".checkpoint-2.tmp").mkdir()
    (run / ".checkpoint-2.tmp" / "state.json").write_text("half")
    (tmp_path / "private.txt").write_text("nobody else's")
    (run / "notes.txt").symlink_to(tmp_path / "private.txt")
    (run / "folder").symlink_to(tmp_path)
    Copy(f"file://{there}").update(run)
    sent = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert sent == {"recipe.yaml", "checkpoint-1/manifest.json"}
    for url in ("simplecache::file:///x", "zip://a::file:///x.zip"):
        with pytest.raises(UsageError, match="is not the URL of one folder"):
            Copy(url)
    with pytest.raises(UsageError, match="a URL with a password") as error:
        Copy("sftp://me:secret-123@host/run")
    assert "secret" not in str(error.value)


def test_copy_of_a_run(tmp_path: Path) -> None:
    """An object store's names may hold anything; those of its files that would lie elsewhere end the fetching."""
    from tests.helpers.a_store import Store

    store = Store()
    store.pipe_file("/bucket/run/recipe.yaml", b"{}")
    try:
        store.store["/bucket/run/../../stolen.txt"] = store.store["/bucket/run/recipe.yaml"]
        with pytest.raises(GenalignError, match="none of a run"):
            fetched("store://bucket/run", tmp_path / "a" / "run")
    finally:
        store.store.clear()
    assert not (tmp_path / "a" / "run").exists()
    assert not (tmp_path / "stolen.txt").exists()


def test_recipe_trackers(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_module_of_mine.py").write_text(leaves(marker))
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe(write_recipe(tmp_path / "run"))
    with pytest.raises(UsageError, match="report_to"):
        start_trackers(["a_module_of_mine"], tmp_path, recipe)
    assert not marker.exists()


def test_sandbox(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of a recipe's function is a program of its author's; that of a sandbox is given no key."""
    code = f"""
import os, socket, subprocess
from genalign.reward import reward

def can(act):
    try:
        act()
        return 1.0
    except OSError:
        return 0.0

@reward
def may(images):
    key = float("A_KEY_OF_MINE" in os.environ)
    acts = [lambda: socket.socket(), lambda: open({str(marker)!r}, "w"), lambda: subprocess.run(["true"])]
    return [key + sum(map(can, acts)) for _ in images]
"""
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setenv("A_KEY_OF_MINE", "secret-123")
    own = ProcessReward("mine.py:may", tmp_path)
    locked = ProcessReward("mine.py:may", tmp_path, sandbox=True)
    try:
        assert own(prompts(1), images(1)).total.item() == 4.0
        marker.unlink()
        try:
            assert locked(prompts(1), images(1)).total.item() == 0.0
            assert not marker.exists()
        except UsageError as error:
            pytest.skip(str(error))
    finally:
        own.close()
        locked.close()


def a_run(folder: Path, code: str) -> Path:
    """A run folder whose reward is code of its own, with an adapter that fits nothing."""
    write_recipe(folder, eval=None)
    (folder / "rules.py").write_text(code)
    (folder / "adapter").mkdir()
    pair = {f"base_model.model.a.lora_{half}.weight": torch.ones(1, 1) for half in "AB"}
    save_file(pair, folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text(
        '{"lora_alpha": 1, "auto_mapping": {"parent_library": "x"}}'
    )
    lines(folder / "metrics.jsonl", {"step": 1, "reward": 0.5})
    return folder


def test_run_folder(tmp_path: Path, marker: Path) -> None:
    """Reading one runs nothing; what builds its recipe runs that recipe's function, in the worker."""
    code = "from genalign.reward import reward\n@reward\ndef bright(images):\n    return [1.0 for _ in images]\n"
    run = a_run(tmp_path / "run", leaves(marker, code))
    (tmp_path / "private.txt").write_text("nobody else's\n")
    (run / "adapter" / "private.txt").symlink_to(tmp_path / "private.txt")
    for name in ("README.md", "report.html", "reward.svg"):
        (run / name).symlink_to(tmp_path / "private.txt")  # which what genalign writes must not go through
    write_card(run)
    write_report(run)
    export(run, "diffusers", tmp_path / "handed-on")
    export(run, "comfyui", tmp_path / "comfy")
    assert not marker.exists()
    assert (tmp_path / "private.txt").read_text() == "nobody else's\n"
    handed = {file.name for file in (tmp_path / "handed-on" / "adapter").iterdir()}
    assert handed == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(UsageError, match="belongs to another model"):
        load_run(run)
    assert marker.read_text() != str(os.getpid())


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [(name, value or "") for name, value in attrs]))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=http://127.0.0.1:9/x>"
    sweep = {"headline": hostile, "guidance": [None], "steps": 2, "before": {"best": None}, "after": {"best": None}}
    plain = {"prompts": hostile, "seeds": [hostile], "sweep": sweep}
    run = a_run(tmp_path / "run", "")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "reward": hostile}, width=1000))
    lines(run / "metrics.jsonl", {"step": 1, "reward": 0.5, hostile: 0.5}, {"step": 2, "reward": 0.6, hostile: 0.4})
    metric = {"before": 0.1, "after": 0.2, "delta": 0.1, "ci95": [0.0, 0.2], "held_out": False, "n": 2}
    (run / "eval.json").write_text(json.dumps({"metrics": {hostile: metric}, **plain}))
    page = Page()
    page.feed(write_report(run).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in ("src", "href", "srcset", "data", "action") or value.startswith(("data:", "#"))
    assert hostile in page.text


def test_cp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.yaml").write_text("mine: 1\n")
    monkeypatch.chdir(tmp_path)
    away = os.path.relpath(tmp_path / "secret", shipped("pipelines"))
    assert main(["cp", away, str(tmp_path / "copy.yaml")]) == 2
    assert main(["cp", str(tmp_path / "secret"), str(tmp_path / "copy.yaml")]) == 2
    assert not (tmp_path / "copy.yaml").exists()


def test_checkpoint(tmp_path: Path) -> None:
    parts = {"adapter": {"a": torch.ones(2)}}
    (tmp_path / "run").mkdir()
    save_file({"b": torch.ones(1)}, tmp_path / "neighbour.safetensors")
    folder = save_checkpoint(tmp_path / "run", 1, parts, {"plain": 1}, keep=2)
    shutil.copy2(tmp_path / "neighbour.safetensors", folder / "more.safetensors")  # which no sum vouches for
    assert set(load_checkpoint(folder).parts) == {"adapter"}
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("../../neighbour.safetensors", str(tmp_path / "neighbour.safetensors"), "/dev/zero"):
        (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": {**manifest["sha256"], name: "0"}}))
        found, refused = newest_checkpoint(tmp_path / "run")
        assert found is None
        assert "is not a file of it" in refused[0]
        with pytest.raises(GenalignError, match="is not a file of it"):
            load_checkpoint(folder)


# ---- rows of data ---------------------------------------------------------------------------------------------------


def elsewhere(tmp_path: Path, listener: Listener) -> list[str]:
    """Names of a picture that a row may not use; all of them would be found."""
    (tmp_path / "secret.png").write_bytes(png())
    return ["../secret.png", str(tmp_path / "secret.png"), f"{listener.url}/a.png", f"file://{tmp_path}/secret.png"]


def test_row_picture(tmp_path: Path, listener: Listener) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "in").mkdir()
    (own / "in" / "a.png").write_bytes(png())
    (own / "b.png").write_bytes(png("blue"))
    (own / "link.png").symlink_to(tmp_path / "secret.png")
    for name in elsewhere(tmp_path, listener):
        rows = {
            "prompts": {"prompt": "p", "image": name},
            "pairs": {"prompt": "p", "chosen": name, "rejected": "b.png"},
            "ranked": {"prompt": "p", "image_path": ["b.png", name], "human_preference": [1, 0]},
        }
        for kind, row in rows.items():
            with pytest.raises(UsageError, match="is not a file below"):
                read_prompts(lines(own / f"{kind}.jsonl", row))
        judged = read_comparisons(lines(own / "judged.jsonl", rows["pairs"]))
        with pytest.raises(UsageError, match="is not a file below"):
            judged.load([0, 1])
        lines(own / "samples.jsonl", {"prompt": "p", "file": name})
        with pytest.raises(UsageError, match="is not a file below"):
            drawn_files(own)
        exemplars = lines(own / "exemplars.jsonl", {"prompt": "p", "image": name})
        with pytest.raises(UsageError, match="is not a file below"):
            read_exemplars(str(exemplars))
    assert listener.asked == []
    inside = ["in/a.png", str(own / "in" / "a.png"), "link.png"]  # a link is the doing of whoever unpacked the folder
    for name in inside:
        found = read_prompts(lines(own / "prompts.jsonl", {"prompt": "p", "image": name})).rows[0].media
        assert found is not None
        assert found["image"].data[0][0].mean() == 1
    (tmp_path / "secret.png").write_text("plain text")
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        read_prompts(own / "prompts.jsonl")


def test_row_of_a_table(tmp_path: Path, listener: Listener, marker: Path) -> None:
    """Parquet, a table saved by datasets, and a folder with a loading script."""
    datasets = pytest.importorskip("datasets")
    for name in elsewhere(tmp_path, listener):
        cell = {"path": name, "bytes": None}
        columns = {"prompt": ["p"], "chosen": [cell], "rejected": [{"path": None, "bytes": png("blue")}]}
        folder = tmp_path / f"table-{len(list(tmp_path.glob('table-*')))}"
        both = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        kinds = datasets.Features({"prompt": datasets.Value("string"), "chosen": both, "rejected": both})
        datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(folder)
        change(folder / "dataset_info.json", features__chosen={"_type": "Image"}, features__rejected={"_type": "Image"})
        assert datasets.load_from_disk(folder).features["chosen"].decode  # so that datasets itself would fetch it
        pairs = find_pairs(folder)
        assert pairs is not None
        with pytest.raises(UsageError, match="is not a file below"):
            pairs.load([0])
    assert listener.asked == []
    change(folder / "state.json", _data_files=[{"filename": f"../table-0/{next(folder.glob('*.arrow')).name}"}])
    with pytest.raises(UsageError, match="is not a file below"):
        find_pairs(folder)
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text(leaves(marker))
    with pytest.raises(UsageError, match="no table"):
        find_pairs(tmp_path / "scripted")
    with pytest.raises(GenalignError, match="cannot be fetched"):
        _from_hub(str(tmp_path / "scripted"))
    assert not marker.exists()


def test_row_picture_format(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program; a picture of more pixels than memory is refused by its header."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: marker.write_text("run"))
    (tmp_path / "a.png").write_bytes(eps)
    Image.open(tmp_path / "a.png").verify()  # it is one, for a Pillow that may open everything
    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + crc
    (tmp_path / "b.png").write_bytes(bomb)
    for name in ("a.png", "b.png"):
        with pytest.raises(UsageError, match="cannot be read as a picture"):
            load_png(tmp_path / name)
    source = Comparisons("table", "ratings", tmp_path, "-")
    source.item("p", eps, "image")
    source.item("p", bomb, "image")
    for number in (0, 1):
        with pytest.raises(UsageError, match="drop that row"):
            source.load([number])
    assert not marker.exists()
    for kind in PICTURES:
        Image.new("RGB", (4, 4), "red").save(tmp_path / "right.png", format=kind)
        assert load_png(tmp_path / "right.png").shape == (3, 4, 4)


def test_row_sound(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    own = tmp_path / "own"
    own.mkdir()
    for folder in (own, tmp_path):
        soundfile.write(folder / "a.wav", torch.zeros(8).numpy(), 8000)
    assert audio.cell("a.wav", own, "row 1")[1] == 8000.0
    for name in ("../a.wav", str(tmp_path / "a.wav"), "http://127.0.0.1:9/a.wav"):
        for value in (name, {"bytes": None, "path": name}):
            with pytest.raises(UsageError, match=r"row 1: .* is not a file below"):
                audio.cell(value, own, "row 1")


def test_listed_samples(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    folder = run / "samples" / "step-1"
    folder.mkdir(parents=True)
    for name in ("../../../secret.wav", str(tmp_path / "secret.wav")):
        row = {"prompt": "x", "seed": 1, "base": name, "tuned": name, "medium": "audio"}
        lines(folder / "grid.jsonl", row)
        for write in (write_report, write_card):
            with pytest.raises(UsageError, match="is not a file below"):
                write(run)


def test_row_video(tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    own = tmp_path / "own"
    own.mkdir()

    def film(path: Path) -> None:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=4)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for _ in range(4):
                frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), "red"))
                for packet in stream.encode(frame):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)

    film(tmp_path / "secret.mp4")
    film(own / "a.mp4")
    assert len(load_video(own / "a.mp4")[0]) >= 1
    playlists = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{listener.url}/x.ts\n#EXT-X-ENDLIST\n",
        "beside.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
        "list.mp4": f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n",
    }
    for name, text in playlists.items():
        (own / name).write_text(text)
        with pytest.raises(UsageError, match="cannot be read as a video"):
            load_video(own / name)
        with pytest.raises(UsageError, match=r"sound .* cannot be read"):
            load_sound(own / name)
    monkeypatch.chdir(own)
    for name in ("../secret.mp4", str(tmp_path / "secret.mp4"), f"{listener.url}/x.mp4", "http:/127.0.0.1/x.mp4"):
        row = {"prompt": "p", "path_A": name, "path_B": "a.mp4", "VQ": "A", "MQ": "A", "TA": "A", "Overall": "A"}
        judged = read_comparisons(lines(own / "rows.jsonl", row).relative_to(own))
        with pytest.raises(UsageError, match=r"is not a file below|cannot be read"):
            judged.load([0])
    assert listener.asked == []


# ---- model folders --------------------------------------------------------------------------------------------------


def test_model_pipeline(tmp_path: Path, marker: Path, unpickled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """model_index.json: a class of its own file, of any installed module, a pipeline within, pickled weights."""
    load_diffusion(PICTURE, pipeline(tmp_path / "sound"), "cpu")
    (tmp_path / "a_module_of_mine.py").write_text(leaves(marker, "class Mine:\n    from_pretrained = print\n"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def custom_pipeline(folder: Path) -> None:
        (folder / "pipeline.py").write_text(leaves(marker))
        change(folder / "model_index.json", _class_name=["pipeline", "Mine"])

    def custom_component(folder: Path) -> None:
        (folder / "unet" / "mine.py").write_text(leaves(marker))
        change(folder / "model_index.json", unet=["mine", "Mine"])

    def nested(folder: Path) -> None:
        shutil.copytree(image_model(), folder / "unet", dirs_exist_ok=True)
        change(folder / "model_index.json", unet=["diffusers", "StableDiffusionPipeline"])

    def pickled(folder: Path) -> None:
        whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(whole), whole.with_suffix(".bin"))
        whole.unlink()

    def indexed(folder: Path) -> None:
        whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
        names = dict.fromkeys(load_file(whole), "diffusion_pytorch_model.bin")
        pickled(folder)
        index = {"metadata": {}, "weight_map": names}
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    def kind_of(*kind: str) -> Callable[[Path], None]:
        return lambda folder: change(folder / "model_index.json", unet=list(kind))

    changes = [custom_pipeline, custom_component, nested, pickled, indexed]
    others = [
        ("a_module_of_mine", "Mine"),
        ("textwrap", "TextWrapper"),
        ("os", "PathLike"),
        ("diffusers", "OnnxRuntimeModel"),
    ]
    for number, spoil in enumerate([*changes, *(kind_of(*kind) for kind in others)]):
        folder = pipeline(tmp_path / str(number))
        spoil(folder)
        with pytest.raises(UsageError):
            load_diffusion(PICTURE, folder, "cpu")
    assert not marker.exists()
    assert unpickled == []


def of_its_own_code(folder: Path, marker: Path) -> Path:
    """A language model, or its tokenizer and processor, that transformers loads only by running the folder's code."""
    (folder / "code.py").write_text(leaves(marker, "class Mine:\n    from_pretrained = print\n"))
    own = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"), "code.Mine")
    change(folder / "config.json", model_type="mine", architectures=["Mine"], auto_map=own)
    return folder


def test_model_auto_map(tmp_path: Path, marker: Path, asked_at_the_terminal: list[str]) -> None:
    folder = of_its_own_code(save_tiny_language(tmp_path / "model"), marker)
    (folder / "code.py").rename(folder / "mine.py")
    shutil.copy2(folder / "mine.py", folder / "code.py")
    save_file({"weight": torch.ones(1, 32), "bias": torch.zeros(1)}, folder / "head.safetensors", metadata={
        "aspects": '["a"]', "pool": "mean", "readout": "linear", "template": "{text}",
    })  # fmt: skip
    text = BackboneSettings(kind="text", model=str(folder))
    vision = BackboneSettings(kind="vlm", model=str(folder))
    loaders: list[Callable[[], Any]] = [
        lambda: load_language(TEXT, folder),
        lambda: LocalModel(folder)._loaded,
        lambda: HeadReward(folder)._loaded,
        lambda: build_backbone(text, "text", tmp_path).loaded,  # type: ignore[attr-defined]
        lambda: build_backbone(vision, "image", tmp_path).loaded,  # type: ignore[attr-defined]
        lambda: build_reward({"use": "skywork", "model": str(folder)}, tmp_path).version,
    ]
    for load in loaders:
        with pytest.raises(UsageError):
            load()
    sound = save_tiny_language(tmp_path / "sound")
    (sound / "code.py").write_text(leaves(marker))
    change(sound / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Mine", None]})
    for load in (lambda: load_language(TEXT, sound), lambda: Length(hi=3, unit="tokens", model=sound).count("a b")):
        with contextlib.suppress(UsageError):
            load()  # by transformers' own class, where it finds one
    known = save_tiny_language(tmp_path / "known")
    (known / "code.py").write_text(leaves(marker))
    change(known / "config.json", auto_map={"AutoModelForCausalLM": "code.Mine"})
    (known / "custom_generate").mkdir()
    (known / "custom_generate" / "generate.py").write_text(leaves(marker, "def generate(model, **k): ..."))
    change(known / "generation_config.json", custom_generate="custom_generate")
    policy = load_language(TEXT, known)  # a model that transformers knows needs no code of the folder
    policy.generate([Prompt("a")], [0])
    assert not marker.exists()
    assert asked_at_the_terminal == []


def test_model_weights(tmp_path: Path, unpickled: list[Any]) -> None:
    """Pickles alone, pickles by an index, and another folder's weights by an index."""
    neighbour = save_tiny_language(tmp_path / "neighbour")
    tensors = load_file(neighbour / "model.safetensors")

    def without(name: str) -> Path:
        folder = save_tiny_language(tmp_path / name)
        (folder / "model.safetensors").unlink()
        return folder

    alone, indexed, away = (without(name) for name in ("alone", "indexed", "away"))
    for folder, name in ((alone, "pytorch_model.bin"), (indexed, "weights.bin")):
        torch.save(tensors, folder / name)
    for folder, name in ((indexed, "weights.bin"), (away, "../neighbour/model.safetensors")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (alone, indexed, away):
        for load in (lambda: load_language(TEXT, folder), lambda: LocalModel(folder)._loaded):  # noqa: B023
            with pytest.raises(UsageError):
                load()
    for folder, told in ((indexed, "from .safetensors files only"), (away, "is not a file below")):
        with pytest.raises(UsageError, match=told):
            read_weights(folder / "model.safetensors.index.json")
    assert unpickled == []


def test_model_adapter(tmp_path: Path) -> None:
    """An adapter_config.json that sends the loader to another model, beside a config.json or in its place."""
    base = save_tiny_language(tmp_path / "base")
    whole, alone = save_tiny_language(tmp_path / "whole"), save_tiny_language(tmp_path / "alone")
    (alone / "config.json").unlink()
    for folder in (whole, alone):
        named = {"peft_type": "LORA", "base_model_name_or_path": str(base), "auto_mapping": {"parent_library": "os"}}
        change(folder / "adapter_config.json", **named)
        with pytest.raises(UsageError, match="is an adapter of"):
            LocalModel(folder)._loaded  # noqa: B018
    with pytest.raises(UsageError, match="is an adapter of"):
        load_language(TEXT, whole)
    part = pipeline(tmp_path / "pipeline")
    change(part / "text_encoder" / "adapter_config.json", base_model_name_or_path=str(base))
    with pytest.raises(UsageError, match="is an adapter of"):
        load_diffusion(PICTURE, part, "cpu")


def test_model_kernel(tmp_path: Path) -> None:
    for key in ("attn_implementation", "_attn_implementation", "text_config__attn_implementation"):
        folder = save_tiny_language(tmp_path / key)
        change(folder / "config.json", **{key: "somebody/kernel"})
        with pytest.raises(UsageError, match="code to be fetched"):
            load_language(TEXT, folder)


def test_model_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "neighbour.txt").write_text("plain text\n")
    for name in ("../neighbour.txt", str(tmp_path / "neighbour.txt")):
        folder = save_tiny_language(tmp_path / f"at-{len(name)}")
        change(folder / "tokenizer_config.json", vocab_file=name)
        with pytest.raises(UsageError, match="vocab_file"):
            load_language(TEXT, folder)
        with pytest.raises(UsageError, match="vocab_file"):
            Length(hi=3, unit="tokens", model=folder).count("a")
    change(folder / "tokenizer_config.json", vocab_file="/home/who/saved/it/vocab.txt")  # stale, and so no harm
    load_language(TEXT, folder)


def test_model_open_clip(
    tmp_path: Path, marker: Path, listener: Listener, unpickled: list[Any], asked_at_the_terminal: list[str]
) -> None:
    assert ClipReward(asset("tiny-clip", tmp_path / "sound")).version
    config = "open_clip_config.json"

    def trusting(folder: Path) -> None:
        change(folder / config, model_cfg__text_cfg__tokenizer_kwargs={"trust_remote_code": True})

    def pickled(folder: Path) -> None:
        torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_pytorch_model.bin")
        (folder / "open_clip_model.safetensors").rename(folder / "other.safetensors")

    spoiled: list[Callable[[Path], None]] = [
        trusting,
        pickled,
        lambda folder: change(folder / config, model_cfg__vision_cfg__timm_model_name="hf-hub:somebody/tower"),
        lambda folder: change(folder / config, model_cfg__vision_cfg__timm_model_name=f"local-dir:{tmp_path}"),
        lambda folder: change(folder / config, model_cfg__text_cfg__hf_model_name=str(tmp_path / "sound")),
        lambda folder: change(folder / config, model_cfg__text_cfg__hf_model_name="../sound"),
        lambda folder: change(folder / config, model_cfg__text_cfg__hf_tokenizer_name=f"{listener.url}/x"),
    ]
    for number, spoil in enumerate(spoiled):
        folder = asset("tiny-clip", tmp_path / str(number))
        (folder / "code.py").write_text(leaves(marker))
        change(
            folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Mine", None]}
        )
        spoil(folder)
        with pytest.raises(UsageError):
            ClipReward(folder).version  # noqa: B018
    assert not marker.exists()
    assert (listener.asked, unpickled, asked_at_the_terminal) == ([], [], [])


def test_model_gguf(tmp_path: Path) -> None:
    """A template that climbs out of its strings is refused, and files of another model beside it are not read."""
    pytest.importorskip("gguf", reason="an extra that the tests do not install: genalign[quantization]")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text("no JSON")
    file = tiny_gguf.written(tiny_gguf.tiny_llama(), tmp_path / "good.gguf")
    assert load_language(PolicySettings(model="tiny"), file).chat.template.text == tiny_gguf.CHAT
    climbs = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    file = tiny_gguf.written(tiny_gguf.tiny_llama(), tmp_path / "bad.gguf", template=climbs)
    with pytest.raises(UsageError, match=r"the model's chat template writes no prompt .* is unsafe"):
        load_language(PolicySettings(model="tiny"), file)


def test_model_template(tmp_path: Path) -> None:
    """A head's template names {prompt} and {text}; it reads no attribute of theirs and pads to no length."""
    for template in ("{text.__class__}", "{text[0]}", "{text!r}", "{text:>999999999}", "{text", "{other}", "{}"):
        folder = asset("tiny-text-head", tmp_path / str(len(list(tmp_path.iterdir()))))
        weights = load_file(folder / "head.safetensors")
        told = {"aspects": json.dumps(["a"] * len(weights["weight"])), "pool": "mean", "readout": "linear"}
        save_file(weights, folder / "head.safetensors", metadata={**told, "template": template})
        with pytest.raises(UsageError, match="template"):
            HeadReward(folder)
        settings = BackboneSettings(kind="text", model=str(folder), template=template)
        with pytest.raises(UsageError, match="template"):
            build_backbone(settings, "text", tmp_path)
    assert HeadReward(shipped("assets", "tiny-text-head")).template


def test_fitted_reward(tmp_path: Path, marker: Path, asked_at_the_terminal: list[str]) -> None:
    """Its backbone is a model by name, wherever that is, which loads by the rules of a model folder."""
    backbone = of_its_own_code(save_tiny_language(tmp_path / "elsewhere"), marker)
    fit = Fit()
    settings = BackboneSettings(kind="text", model="../elsewhere")
    save_fitted(tmp_path / "fitted", build_head(fit, 8, 0), fit, settings, "text", 8, [])
    with pytest.raises(UsageError):
        FittedReward(tmp_path / "fitted").version  # noqa: B018
    assert FittedReward(tmp_path / "fitted").backbone.model == str(backbone)  # type: ignore[attr-defined]
    assert not marker.exists()
    assert asked_at_the_terminal == []


def test_model_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub id is held to the same, by its configuration, before it loads."""
    folder = save_tiny_language(tmp_path / "fetched")
    change(folder / "adapter_config.json", base_model_name_or_path="somebody/else")
    fetched: list[str] = []

    def fetch(model: str, name: str) -> str:
        fetched.append(name)
        if not (folder / name).is_file():
            raise FileNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    from transformers import AutoTokenizer

    for load in (lambda: LocalModel("some/model")._loaded, lambda: from_hub(AutoTokenizer, "some/model")):
        with pytest.raises(UsageError, match="is an adapter of"):
            load()
    assert "adapter_config.json" in fetched


# ---- served requests ------------------------------------------------------------------------------------------------


def test_served_request(tmp_path: Path, listener: Listener, marker: Path) -> None:
    """A picture is its own bytes; a path, an address, a reward or a model that a request names is not looked at."""
    (tmp_path / "mine.py").write_text(leaves(marker))
    (tmp_path / "secret.png").write_bytes(png())
    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + crc
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    whole = base64.b64encode(png()).decode()
    with serving(application(Sharpness())) as url:
        names = [
            str(tmp_path / "secret.png"),
            f"{listener.url}/a.png",
            f"file://{tmp_path}/secret.png",
            "../secret.png",
        ]
        pictures: list[Any] = [*names, {"url": f"{listener.url}/a.png"}, {"path": names[0]}]
        pictures += [base64.b64encode(data).decode() for data in (bomb, eps)]
        for picture in pictures:
            body = {"prompts": ["p"], "media": {"image": [picture]}}
            reply = httpx.post(f"{url}/score", json=body)
            assert reply.status_code == 400, (picture, reply.text)
            assert "Traceback" not in reply.text
        more = {
            "reward": f"{tmp_path}/mine.py:f",
            "model": "some/model",
            "use": "os:getcwd",
            "url": f"{listener.url}/x",
        }
        body = {"prompts": [{"text": "p", "facts": more}], "media": {"image": [whole]}, **more}
        reply = httpx.post(f"{url}/score", json=body)
        assert reply.status_code == 200
        assert reply.json()["names"] == ["sharpness"]
        out = io.BytesIO()
        send(out, {**pack_batch([Prompt("p", facts=more)], Media(image=Track(torch.ones(1, 3, 8, 8))), None), **more})
        reply = httpx.post(f"{url}/score", content=out.getvalue(), headers={"content-type": FRAME})
        assert reply.status_code == 200
    assert listener.asked == []
    assert not marker.exists()


def test_served_answer(tmp_path: Path, marker: Path) -> None:
    """What a server answers is numbers and text: a pickle in its place, or a frame of a code's name, is a failure."""
    import pickle

    from fastapi import FastAPI, Response

    class Touch:
        def __reduce__(self) -> Any:
            return (marker.write_text, ("run",))

    about = {"name": "r", "needs": ["image"], "aspects": ["r"], "weights": [1.0], "looks_at": "sample", "version": "1"}
    answers = [pickle.dumps(Touch()), struct.pack("<Q", 1 << 62) + b"{}"]
    header = json.dumps({"body": {"scores": {"__class__": "os.system"}, "version": "1"}, "tensors": []}).encode()
    answers.append(struct.pack("<Q", len(header)) + header)
    app = FastAPI()
    app.get("/health")(lambda: about)
    app.post("/score")(lambda: Response(answers[0], media_type=FRAME))
    from genalign.reward.guard import guarded

    with serving(app) as url:
        while answers:
            reward = build_reward({"use": url, "retries": 0}, tmp_path)
            assert guarded(reward, prompts(1), images(1), None).failed.all()
            answers.pop(0)
    assert not marker.exists()


# ---- the table ------------------------------------------------------------------------------------------------------


def test_page(tmp_path: Path) -> None:
    """What the page may name; tests/demo/test_serve.py asks the same of it over HTTP."""
    from genalign.demo.exchange import unpack
    from genalign.demo.inspect import changed
    from genalign.demo.models import Models
    from genalign.demo.serve import serve

    models = Models("image-d3po", [], tmp_path / "runs")
    (tmp_path / "runs/own/adapter").mkdir(parents=True)
    (tmp_path / "runs/own/recipe.yaml").write_text((shipped("pipelines") / "image-d3po.yaml").read_text())
    (tmp_path / "elsewhere/adapter").mkdir(parents=True)
    shutil.copy(tmp_path / "runs/own/recipe.yaml", tmp_path / "elsewhere/recipe.yaml")
    assert models.folder("own") == tmp_path / "runs/own"
    for name in ("../elsewhere", str(tmp_path / "elsewhere"), "own/../../elsewhere", ""):
        with pytest.raises(UsageError, match="there is no run"):
            models.folder(name)
    for change in ("reward=rule.py:run", "policy.model=owner/name", f"data.prompts={tmp_path}", "reward={use: x}"):
        with pytest.raises(UsageError, match="one word"):
            changed(models, "own", change)
    for name in ("../pairs.jsonl", "/pairs.jsonl", "rule.py"):
        with zipfile.ZipFile(tmp_path / "sent.zip", "w") as sent:
            sent.writestr(name, "{}")
        with pytest.raises(UsageError):
            unpack(tmp_path / "sent.zip", tmp_path / "unpacked")
    assert not (tmp_path / "pairs.jsonl").exists()
    with pytest.raises(UsageError, match="add --auth FILE"):
        serve(host="0.0.0.0")


def test_table_and_tests_name_each_other() -> None:
    table = re.findall(r"^\|.*\|\s*`(test_\w+)`\s*\|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    here = {name for name in vars(sys.modules[__name__]) if name.startswith("test_")}
    assert sorted(table) == sorted(here - {"test_table_and_tests_name_each_other"})
