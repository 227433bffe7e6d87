"""Who may import whom, what the start of the command line may not load, and that the core names no model family."""

import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

ROOT = Path(__file__).parents[2]
CORE = [*sorted((ROOT / "genalign" / "policy").rglob("*.py")), *sorted((ROOT / "genalign" / "method").rglob("*.py"))]


def test_import_rule():
    command = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout)


def test_only_policy_and_lab_import_diffusers():
    """The contracts see imports; this sees the late ones inside functions by their text as well."""
    importing = {
        path.relative_to(ROOT / "genalign").parts[0]
        for path in (ROOT / "genalign").rglob("*.py")
        if re.search(r"^\s*(import|from) diffusers", path.read_text(), re.MULTILINE)
    }
    assert importing <= {"policy", "lab"}


@pytest.mark.parametrize("path", [*CORE, ROOT / "genalign" / "training" / "loop.py"], ids=lambda path: path.stem)
def test_core_names_no_pipeline_or_model_class(path):
    names = {name for name in dir(diffusers) if re.search(r"(Pipeline|Model|2D|3D|Transformer\w*)$", name)}
    generic = {"DiffusionPipeline", "ModelMixin"}
    assert len(names) > 300
    assert not (set(re.findall(r"\w+", path.read_text())) & names) - generic


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_loads_no_heavy_library(arguments):
    code = (
        "import sys; from genalign.cli.main import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'pydantic', 'PIL'} & set(sys.modules)\n"
        "print('LOADED', sorted(heavy), code or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("LOADED [] 0"), done.stdout + done.stderr


def test_nothing_can_unpickle():
    """Invariant 36: torch.load, pickle and their kin stay out of the package."""
    banned = re.compile(
        r"\btorch\.load\(|\bimport (pickle|dill|cloudpickle|joblib)\b|\bnp\.load\(|trust_remote_code=True"
    )
    guilty = [str(path) for path in (ROOT / "genalign").rglob("*.py") if banned.search(path.read_text())]
    assert guilty == []
