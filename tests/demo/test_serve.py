"""The page over HTTP: no file of this machine, bounded uploads, a password, a queue that ends, no telemetry."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from genalign.cli.main import main
from genalign.types import UsageError
from tests.contracts.tree import ROOT

gradio = pytest.importorskip("gradio", reason="gradio is not installed")

from genalign.demo import page as page_module  # noqa: E402
from genalign.demo.passwords import add_user  # noqa: E402
from genalign.demo.serve import WAITING, serve  # noqa: E402
from tests.helpers.pages import number_of, served  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def address(place):
    page, address = served(place)
    yield address
    page.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    add_user(folder / "users", "ada", "a long secret")
    page, address = served(folder, auth=folder / "users")
    yield address
    page.close()


def test_the_page_listens_on_this_machine_alone(address):
    assert httpx.get(address).status_code == 200
    port = int(address.rsplit(":", 1)[1])
    listening = [one for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN]
    assert {one.laddr.ip for one in listening if one.laddr.port == port} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{votes}/votes.sqlite",
        "{votes}/../votes/votes.sqlite",
        "{votes}/media",
        "{runs}",
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "pyproject.toml",
    ],
)
def test_no_file_of_this_machine_is_served(address, place, path):
    path = path.format(votes=place / "votes", runs=place / "runs")
    for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "theme.css/"):
        found = httpx.get(f"{address}/{route}{path}")
        assert found.status_code in (403, 404, 405), (route, path)
        assert b"SQLite" not in found.content
        assert b"root:" not in found.content


def test_the_page_names_no_folder_of_this_machine(address, place):
    shown = httpx.get(address).text + httpx.get(f"{address}/config").text
    assert str(place) not in shown
    assert str(ROOT) not in shown.replace(r"\/", "/")


def test_an_upload_that_is_too_large_is_refused(address, monkeypatch):
    limit = page_module.MOST_BYTES
    sent = httpx.post(f"{address}/gradio_api/upload", files={"files": ("pairs.zip", b"0" * (limit + 1))}, timeout=60)
    assert sent.status_code == 413
    assert httpx.post(f"{address}/gradio_api/upload", files={"files": ("pairs.zip", b"0")}).status_code == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "{votes}/votes.sqlite", "../../etc/passwd", "{votes}/media/x.zip"])
def test_the_import_reads_nothing_but_what_was_uploaded(address, place, path):
    given = {"path": path.format(votes=place / "votes"), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [given, "ada"], "fn_index": number_of(address, "bring_in"), "session_hash": "page"}
    answer = httpx.post(f"{address}/gradio_api/run/predict", json=body, timeout=60)
    assert answer.status_code in (403, 404, 500)
    assert "new vote" not in answer.text
    assert "root:" not in answer.text


def test_an_upload_of_another_kind_is_refused(address):
    sent = httpx.post(f"{address}/gradio_api/upload", files={"files": ("pairs.exe", b"MZ")}).json()[0]
    given = {"path": sent, "orig_name": "pairs.exe", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [given, "ada"], "fn_index": number_of(address, "bring_in"), "session_hash": "page"}
    answer = httpx.post(f"{address}/gradio_api/run/predict", json=body, timeout=60)
    assert "new vote" not in answer.text
    assert answer.status_code == 500 or "neither a .zip" in answer.text


def test_telemetry_is_off_and_nothing_of_another_host_is_named(address):
    config = httpx.get(f"{address}/config").json()
    assert config["analytics_enabled"] is False
    html = httpx.get(address).text
    hosts = {host for host in re.findall(r"(?:src|href)=\"https?://([^/\"]+)", html) if not host.startswith("127.")}
    assert hosts <= {"gradio.app"}, hosts  # a link in a notice for browsers without scripts


@pytest.mark.slow
def test_draws_beyond_the_queue_are_refused_and_the_others_answered(address):
    """Without the gate by which test_serve_load.py counts them exactly."""
    number, drawing = number_of(address, "go"), ["base", "a bus above a rocket", 0, 1, 0, 0, False]

    def ask(k):
        body = {"data": drawing, "fn_index": number, "session_hash": f"page{k}"}
        return httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=60)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    taken = [k for k, answer in enumerate(answers) if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert WAITING <= len(taken) <= WAITING + 8  # some are answered while others still come
    assert {answer.status_code for answer in refused} == {503}
    assert all("queue is full" in answer.text.lower() for answer in refused)
    for k in taken[:: len(taken) - 1]:
        with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash=page{k}", timeout=120) as events:
            text = "".join(events.iter_text())
        assert '"success":true' in text
        assert "data:image/png;base64," in text


def test_a_wrong_password_opens_nothing(guarded):
    with httpx.Client() as client:
        assert client.get(f"{guarded}/config").status_code == 401
        assert client.get(f"{guarded}/gradio_api/file=/etc/passwd").status_code == 401
        assert client.post(f"{guarded}/gradio_api/upload", files={"files": ("x.zip", b"0")}).status_code == 401
        for name, password in (("ada", "wrong"), ("eve", "a long secret"), ("ada", "")):
            answer = client.post(f"{guarded}/login", data={"username": name, "password": password})
            assert answer.status_code in (400, 401, 422)
            assert client.get(f"{guarded}/config").status_code == 401
        assert client.post(f"{guarded}/login", data={"username": "ada", "password": "a long secret"}).status_code == 200
        assert client.get(f"{guarded}/config").status_code == 200


@pytest.mark.parametrize("open_to_others", [{"share": True}, {"host": "0.0.0.0"}])
def test_a_page_for_others_needs_a_password(tmp_path, open_to_others):
    with pytest.raises(UsageError, match="add --auth FILE"):
        serve(runs=tmp_path, votes=tmp_path, **open_to_others)


def test_what_cannot_be_served_is_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        (["--port", "99999"], "--port is 99999"),
        (["--add-user", "ada"], "add --auth FILE"),
        (["image-d3pp"], "did you mean 'image-d3po'"),
        (["tiny-flow"], "policy.model=tiny-flow"),
        (["--auth", "missing"], "cannot read the users"),
    ]
    for words, sentence in cases:
        assert main(["demo", *words]) == 2, words
        assert sentence in capsys.readouterr().err


def test_a_user_is_added_at_the_terminal(tmp_path, monkeypatch, capsys):
    answers = iter(["a long secret", "a long secret", "a long secret", "another"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    words = ["demo", "--auth", str(tmp_path / "users"), "--add-user", "ada"]
    assert main(words) == 0
    assert "ada:" in (tmp_path / "users").read_text()
    assert main(words) == 2
    assert "the two passwords differ" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named():
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from genalign.cli.main import main\n"
        "sys.exit(main(['demo', '--votes', '/nonexistent/votes']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 2
    assert "pip install 'genalign[demo]'" in found.stderr
