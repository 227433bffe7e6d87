"""A reward that another process serves (`genalign serve-reward`), used like any other: `use: http://host:port`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from genalign.reward.base import SCOPES, ScoringError
from genalign.reward.proxy import RemoteProxy
from genalign.reward.runtime.web import Web
from genalign.reward.runtime.wire import FRAME, pack_batch, receive, send, unpack_scores
from genalign.types import Media, Prompt, Scores, UsageError


class RemoteReward(RemoteProxy):
    """The served reward's needs, aspects, weights and version; media cross as raw tensors, so nothing is rounded.

    url, web: as `Web` takes them (key, timeout, retries, pause, longest_wait, limit; key names the token's environment
    variable). name: None takes the served one's. Without gradients. A server that was restarted with another reward
    fails its rows, and so in the end the run: its scores are no longer those that training began with.

    Raises:
        UsageError: as Web does; and when more than its name is first needed, if the server does not describe a reward.
    """

    def __init__(self, url: str, *, name: str | None = None, **web: Any) -> None:
        Web.check_settings(f"reward {url!r}", web, beside=("name",))
        self._web, self._name = Web(url, **web), name

    @cached_property
    def _about(self) -> dict[str, Any]:  # type: ignore[override]
        try:
            about = json.loads(self._web.request("GET", "/health"))
            if (
                not about["version"]
                or about["looks_at"] not in SCOPES
                or not len(about["aspects"]) == len(about["weights"]) > 0
            ):
                raise ValueError("its description does not fit together")
            if about.get("steps"):
                raise ValueError("it reads the training step, so it must run beside training, not behind a server")
            return about
        except (ScoringError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"no reward is served at {self._web.url}: {error}; start genalign serve-reward") from error

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._name or self._about["name"]

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        version, frame = self.version, io.BytesIO()
        send(frame, pack_batch(prompts, media, group))
        reply = receive(io.BytesIO(self._web.request("POST", "/score", frame.getvalue(), {"content-type": FRAME})))
        if reply is None:
            raise ScoringError(f"the answer of {self._web.url} was cut off")
        if reply["version"] != version:
            raise ScoringError(f"{self._web.url} now serves another reward; put it back, or start a new run")
        return unpack_scores(reply["scores"])
