"""A run's copy at a URL, in a store of this process and on the disk, and runs that go on from one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genalign.cli.main import main
from genalign.files.settings import write_yaml
from genalign.run.build import build
from genalign.run.copies import Copy, fetched
from genalign.run.recipe import load_recipe
from genalign.training.checkpoint import newest_checkpoint
from genalign.types import UsageError
from tests.helpers.a_store import Store
from tests.helpers.tiny_recipe import write_recipe

URL = "store://bucket/run"


@pytest.fixture(autouse=True)
def store() -> Iterator[Store]:
    """The store, empty."""
    Store.store.clear()
    yield Store()
    Store.store.clear()


def a_checkpoint(run: Path, step: int) -> None:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("adapter.safetensors", "manifest.json", "state.json"):
        (folder / name).write_text(f"{name} of {step}")
    (run / "recipe.yaml").write_text("policy: {}\n")


def test_what_changed_is_sent_and_old_checkpoints_go(tmp_path: Path, store: Store, monkeypatch: Any) -> None:
    """A manifest is the last file of a checkpoint to come, and the first to go."""
    done: list[str] = []
    put, remove = Store.put_file, Store.rm_file
    monkeypatch.setattr(Store, "put_file", lambda s, a, b, **k: (done.append(f"+{b}"), put(s, a, b, **k))[1])
    monkeypatch.setattr(Store, "rm_file", lambda s, a: (done.append(f"-{a}"), remove(s, a))[1])
    run = tmp_path / "run"
    a_checkpoint(run, 1)
    copy = Copy(URL)
    copy.claim(load_recipe("image-nft"))
    assert copy.names() == []
    done.clear()
    copy.update(run)
    names = ["checkpoint-1/adapter.safetensors", "checkpoint-1/state.json", "recipe.yaml", "checkpoint-1/manifest.json"]
    assert done == [f"+/bucket/run/{name}" for name in names]
    done.clear()
    copy.update(run)
    assert done == []
    a_checkpoint(run, 2)
    for file in (run / "checkpoint-1").iterdir():
        file.unlink()
    (run / "checkpoint-1").rmdir()
    copy.update(run)
    assert [entry for entry in done if "checkpoint-1" in entry] == [
        f"-/bucket/run/checkpoint-1/{name}" for name in ("manifest.json", "adapter.safetensors", "state.json")
    ]
    assert sorted(copy.names()) == sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())


def test_on_a_disk_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: Any) -> None:
    run, there = tmp_path / "run", tmp_path / "there"
    a_checkpoint(run, 1)
    copy = Copy(f"file://{there}")
    copy.update(run)
    (run / "recipe.yaml").write_text("policy: {model: other}\n")

    def breaks(source: Path, draft: Path) -> None:
        Path(draft).write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr("shutil.copyfile", breaks)
    with pytest.raises(UsageError, match=r"cannot be written \(No space left on device\)"):
        copy.update(run)
    assert (there / "recipe.yaml").read_text() == "policy: {}\n"
    monkeypatch.undo()
    copy.update(run)
    assert (there / "recipe.yaml").read_text() == "policy: {model: other}\n"


@pytest.mark.parametrize(
    ("url", "culprit"),
    [
        ("bucket/run", "is not the URL of one folder"),
        ("simplecache::s3://bucket/run", "is not the URL of one folder"),
        *((url, "is not the URL of one folder") for url in ("file://", "file:///", "store://", "s3:///", "file://run")),
        ("memory://bucket/run", "is the memory of this process, which ends with it; name a place that stays"),
        ("nowhere://bucket/run", "Protocol not known: nowhere"),
        ("reference://run", "reference://run cannot be reached from here"),
        ("sftp://me:secret@host/run", "a URL with a password in it would be kept"),
        ("file:///proc/nothing/run", "cannot be written"),
    ],
)
def test_a_bad_address_is_one_sentence_before_anything_is_loaded(
    url: str, culprit: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    recipe = write_recipe(tmp_path, eval=None)
    monkeypatch.setattr("genalign.run.launch.build", lambda *_: pytest.fail("it was built"))
    assert main(["train", str(recipe), f"train.copy_to={url}", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert culprit in said
    assert "secret" not in said
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"s3://bucket/run cannot be reached from here: Install s3fs"):
        Copy("s3://bucket/run")


def test_a_place_without_a_run_and_a_folder_that_is_here_are_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match=r"store://bucket/run holds no copy of a run"):
        fetched(URL, tmp_path / "run")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"is here already; go on with it by --resume"):
        fetched(URL, tmp_path / "here")


def test_a_run_goes_on_from_its_copy_as_if_it_had_not_stopped(tmp_path: Path, store: Store, capsys: Any) -> None:
    recipe = str(write_recipe(tmp_path, eval=None, train={"sample_every": 99}))
    words = ["train", recipe, f"train.copy_to={URL}"]
    assert main([*words, "train.steps=2", "--out", str(tmp_path / "first")]) == 0
    assert main([*words, "--out", str(tmp_path / "other")]) == 2  # it holds a run now
    assert "already holds a run" in capsys.readouterr().err
    assert newest_checkpoint(tmp_path / "first") == (tmp_path / "first" / "checkpoint-2", [])
    for name in Copy(URL).names():
        assert store.cat(f"/bucket/run/{name}") == (tmp_path / "first" / name).read_bytes()
    assert "adapter/adapter_model.safetensors" in Copy(URL).names()

    assert main([*words, "--resume", URL, "--out", str(tmp_path / "second")]) == 0
    assert main(["train", recipe, "--out", str(tmp_path / "whole")]) == 0
    for part in ("adapter", "optimizer", "ema"):
        name = f"checkpoint-3/{part}.safetensors"
        assert store.cat(f"/bucket/run/{name}") == (tmp_path / "whole" / name).read_bytes()
    steps = [json.loads(line)["step"] for line in store.cat("/bucket/run/metrics.jsonl").splitlines()]
    assert steps == [1, 2, 3]


def test_of_two_runs_that_begin_at_one_place_the_second_is_refused(
    tmp_path: Path, store: Store, monkeypatch: Any, capsys: Any
) -> None:
    """Whether it begins before the first one's first checkpoint, or has looked before the first one began. A run that
    ends without a checkpoint leaves the place free."""
    recipe = str(write_recipe(tmp_path, eval=None, train={"sample_every": 99}))
    words = ["train", recipe, f"train.copy_to={URL}", "train.steps=1", "--out"]
    said: list[str] = []

    def begins_another(*_: Any) -> None:
        assert main([*words, str(tmp_path / "second")]) == 2
        said.append(capsys.readouterr().err)
        raise UsageError("it ends before its first checkpoint")

    with monkeypatch.context() as patched:
        patched.setattr("genalign.run.launch.run_steps", begins_another)
        assert main([*words, str(tmp_path / "first")]) == 2
    assert "already holds a run; choose another train.copy_to, or go on with it by --resume store://" in said[0]
    assert not (tmp_path / "second").exists()
    assert Copy(URL).names() == []

    def takes_the_place(*given: Any) -> Any:
        Store().pipe("/bucket/run/recipe.yaml", (tmp_path / "first" / "recipe.yaml").read_bytes())
        return build(*given)

    monkeypatch.setattr("genalign.run.launch.build", takes_the_place)
    assert main([*words, str(tmp_path / "third")]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert Copy(URL).names() == ["recipe.yaml"]  # the other run's stays


def test_resuming_notices_that_the_place_holds_another_run(
    tmp_path: Path, store: Store, monkeypatch: Any, capsys: Any
) -> None:
    """What may change on resuming may differ there, too; a copy is not overwritten by a run of another seed."""
    recipe = write_recipe(tmp_path, eval=None)
    store.pipe("/bucket/run/recipe.yaml", write_yaml(load_recipe(recipe, ["train.steps=1"]).resolved()).encode())
    monkeypatch.setattr("genalign.run.launch.build", lambda *_: pytest.fail("it was built"))
    words = ["train", str(recipe), f"train.copy_to={URL}", "train.seed=7", "--resume", str(tmp_path)]
    assert main(words) == 2
    assert "holds another run, whose recipe differs at train.seed (was 0, is 7)" in capsys.readouterr().err
    Copy(URL).claim(load_recipe(recipe, ["train.resume=latest"]))
    assert Copy(URL).names() == ["recipe.yaml"]


@pytest.mark.parametrize("place", ["run", "run/copy", ""])
def test_a_copy_within_the_run_is_refused(place: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """It would be copied into itself, and after n checkpoints hold itself n times."""
    recipe = write_recipe(tmp_path, eval=None)
    words = ["train", str(recipe), f"train.copy_to=file://{tmp_path / 'all' / place}"]
    assert main([*words, "--out", str(tmp_path / "all" / "run")]) == 2
    assert "are within one another; name a folder elsewhere" in capsys.readouterr().err


def test_a_copy_that_fails_while_training_is_made_up_for(
    tmp_path: Path, store: Store, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    a_checkpoint(run, 1)
    copy, put = Copy(URL), Store.put_file

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr(Store, "put_file", away)
    copy.try_update(run)
    assert "store://bucket/run cannot be written (the network is down)" in caplog.text
    monkeypatch.setattr(Store, "put_file", put)
    copy.try_update(run)
    assert len(copy.names()) == 4
    assert os.path.exists(run / "recipe.yaml")
