"""The page of `genalign demo`, served to a test; gradio is imported when it is."""

import socket

import httpx

from tests.demo.conftest import SMALL


def served(folder, **settings):
    from genalign.demo.serve import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = serve("image-d3po", SMALL, runs=folder / "runs", votes=folder / "votes", port=port, block=False, **settings)
    return page, f"http://127.0.0.1:{port}"


def number_of(address, name):
    """The number by which the page's own script asks for a function."""
    (found,) = (one for one in httpx.get(f"{address}/config").json()["dependencies"] if one["api_name"] == name)
    return found["id"]
