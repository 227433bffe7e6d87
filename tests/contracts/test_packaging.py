"""The distribution: sdist, a wheel from it, both ways of installing, and nothing forgotten."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

from tests.helpers.tiny_recipe import write_recipe

ROOT = Path(__file__).parents[2]
ROOMS = ("assets", "pipelines", "rewards")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def call(*command, cwd, **environment):
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def room_files(source):
    return {
        path.relative_to(source).as_posix() for room in ROOMS for path in (source / room).rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout without what git ignores, so that no old build leaks in."""
    skipped = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "genalign", ignore=skipped))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """(sdist, wheel made from that sdist), without a network: setuptools is a test dependency."""
    dist = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=dist)
    return next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))


@pytest.fixture
def new_python(tmp_path):
    """Python of a fresh environment that sees this one's packages, but not this checkout."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    here = next(path for path in sys.path if path.endswith("site-packages"))
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    (site / "outer.pth").write_text(f"{here}\n")  # an outer .pth is not read again: no editable finder comes along
    return python


def install(python, what, cwd):
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", *what, cwd=cwd)


def where(python, cwd):
    code = (
        "import genalign, genalign.files.shipped as s; print(genalign.__file__); [print(s.shipped(r)) for r in s.ROOMS]"
    )
    return [Path(line) for line in call(python, "-c", code, cwd=cwd).split()]


def test_package_list_is_complete():
    found = set(find_packages(str(ROOT), include=["genalign*"]))
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == found | {f"genalign._shipped.{room}" for room in ROOMS}


def test_wheel_and_sdist_carry_every_file_of_the_rooms(source, built):
    sdist, wheel = built
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert room_files(source) <= {name.removeprefix("genalign/_shipped/") for name in in_wheel}
    assert "genalign/py.typed" in in_wheel
    page = {path.relative_to(source).as_posix() for path in (source / "genalign/demo").iterdir() if path.is_file()}
    assert {".py", ".css", ".js"} == {Path(name).suffix for name in page}
    assert page <= set(in_wheel)
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert room_files(source) | {"README.md", "LICENSE", "SECURITY.md", "tests/contracts/test_packaging.py"} <= in_sdist
    top = {name.partition("/")[0] for name in in_wheel}
    assert top == {"genalign", f"genalign-{PROJECT['project']['version']}.dist-info"}
    licences = {name.rpartition("/")[2] for name in in_wheel if "/licenses/" in name}
    assert licences == {
        "LICENSE",
        "LICENSE-Apache-2.0",
        "LICENSE-OFL-1.1",
        "LICENSE-fluid-soundfont-MIT",
        "LICENSE-hpsv3-template",
        "LICENSE-unifiedreward-template",
        "LICENSE-viescore-template",
    }
    assert not [name for name in in_wheel | in_sdist if "__pycache__" in name or name.endswith(".pyc")]
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages | {"AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"} <= in_sdist


def test_wheel_works_outside_the_checkout(built, new_python, tmp_path):
    install(new_python, [built[1]], tmp_path)
    package, *rooms = where(new_python, tmp_path)
    assert package.is_relative_to(tmp_path)
    assert all(room.is_relative_to(package.parent / "_shipped") for room in rooms)
    genalign = new_python.parent / "genalign"
    assert "train" in call(genalign, "--help", cwd=tmp_path)
    listed = call(genalign, "ls", "recipes", cwd=tmp_path)
    assert all(path.stem in listed for path in (ROOT / "pipelines").glob("*.yaml"))
    recipe = write_recipe(tmp_path / "mine", train={"steps": 2}, eval=None)
    call(genalign, "train", recipe, "train.steps=1", "--out", "run", cwd=tmp_path)
    assert {"report.html", "README.md", "adapter", "metrics.jsonl"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_editable_install_reads_the_checkout(source, new_python, tmp_path):
    install(new_python, ["--editable", source], tmp_path)
    package, *rooms = where(new_python, tmp_path)
    assert package == source / "genalign" / "__init__.py"
    assert rooms == [source / room for room in ("rewards", "pipelines", "assets")]
