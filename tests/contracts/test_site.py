"""docs/ as a site: it builds without a warning, and nothing that it shows is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.contracts.tree import ROOT


@pytest.mark.skipif(find_spec("material") is None, reason="needs mkdocs-material: pip install 'genalign[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an announcement, which is no warning about these pages
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = sorted((tmp_path / "site").rglob("index.html"))
    assert len(pages) == len(list((ROOT / "docs").rglob("*.md")))
    for page in pages:
        html = page.read_text()
        for source in re.findall(r'<img [^>]*?src="([^":]+)"', html):
            assert (page.parent / source).resolve().is_file(), f"{page} shows {source}"
        assert not re.search(r'href="[^"]*\.(md|py|ya?ml)["#]', html), f"{page} leads out of the site"
