"""The doctor finds what is there, says why a kernel does not load, and changes nothing."""

import subprocess
import sys
from importlib import metadata

from genalign.cli import doctor as module
from genalign.cli.doctor import doctor, main


def test_versions_are_those_installed():
    rows = {row.what: row for row in doctor()}
    for package in module.PACKAGES:
        assert rows[package] == (package, "ok", metadata.version(package))
    assert rows["python"].detail == sys.version.split()[0]


def test_absent_xformers_is_said_with_its_cure(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    row = next(row for row in doctor() if row.what == "attention: xformers")
    assert row.state == "no"
    assert "pip install 'genalign[xformers]'" in row.detail
    assert main() == 0
    assert "genalign[xformers]" in capsys.readouterr().out  # the brackets are no markup


def test_broken_kernel_is_told_in_its_own_words():
    def trial():
        raise NotImplementedError("no operator found\nfor this device " + "x" * 300)

    state, detail = module._attempt(trial)
    assert state == "no"
    assert detail.startswith("no operator found for this device")
    assert len(detail) <= 160


def test_what_splits_weights_is_named_and_what_does_not_is_said_with_its_cure():
    rows = {row.what: row for row in doctor()}
    assert rows["ranks: fsdp2"].state == "ok"
    assert rows["ranks: deepspeed"].state == "no"
    assert "equal numbers of passes" in rows["ranks: deepspeed"].detail
    assert "train.backend=fsdp2" in rows["ranks: deepspeed"].detail


def test_missing_package_is_broken_and_the_exit_code_says_so(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package-of-genalign"))
    assert [row.what for row in doctor() if row.state == "broken"] == ["no-such-package-of-genalign"]
    assert main() == 1


def test_offline_switch_is_read(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HOME", raising=False)
    rows = {row.what: row for row in doctor()}
    assert rows["HF_HUB_OFFLINE"].detail == "1"
    assert rows["HF_HOME"].state == "no"


def test_import_is_light():
    code = "import genalign.cli.doctor, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
