"""`genalign serve-reward R`: a reward behind HTTP, for other processes and other programs. Nothing here can unpickle.

GET  /health   {"status": "ok", name, needs, aspects, weights, looks_at, version}
POST /score    a frame of runtime/wire.py (content type FRAME): pack_batch in, {"scores", "version"} out, lossless
               or JSON: {"prompts": ["...", {"text": "...", "facts": {...}}], "media": {...}, "group": [0, 0, 1]} in,
               with media image: [base64 of PNG], video: [[base64 of PNG, ...]], audio: [base64 of FLAC], text: ["..."],
               and "rate" for video; {"names", "values", "valid", "failed", "total", "info", "version"} out
"""

from __future__ import annotations

import asyncio
import io
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genalign.media import MEDIA
from genalign.media.files import track_of
from genalign.media.medium import Budget
from genalign.reward.guard import guarded
from genalign.reward.proxy import about
from genalign.reward.runtime.wire import FRAME, pack_scores, receive, send, unpack_batch
from genalign.types import GenalignError, Media, Prompt, Reward, Scores, Track, UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

PIXELS = 1 << 27  # of all pictures of one request, and samples of all sounds, however small their files
PATIENCE = 60.0  # seconds to send a body
Batch = tuple[list[Prompt], Media, Tensor | None]


class _RefusedError(Exception):
    """A request that is answered with `status` (4xx) and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def application(
    reward: Reward, token: str | None = None, max_body: int = 256 << 20, waiting: int = 16, device: str = "cpu"
) -> FastAPI:
    """An ASGI application that scores with `reward`, one request at a time.

    token: what a request must carry as `Authorization: Bearer TOKEN`; /health is open. max_body: bytes of a request.
    waiting: requests in flight at most; a further one is answered 503 with Retry-After. device: where media go.

    A reward that fails is answered with a mask, as everywhere. A request that is not a batch, or that lacks what the
    reward needs, is refused with 4xx and one sentence.

    Raises:
        UsageError: fastapi is not installed, or the reward has a state that only training can move.
    """
    try:
        import fastapi
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import JSONResponse
    except ImportError as error:
        raise UsageError("serving a reward needs fastapi and uvicorn; pip install 'genalign[serve]'") from error
    described = about(reward)
    app = fastapi.FastAPI(title=f"genalign: {reward.name}", docs_url=None, redoc_url=None, openapi_url=None)
    scoring, places = threading.Lock(), asyncio.Semaphore(waiting)

    @torch.no_grad()
    def answer(batch: Batch, framed: bool) -> Response:
        prompts, media, group = batch
        with scoring:
            scores = guarded(reward, prompts, _on(media, device), group)
        if not framed:
            return JSONResponse({**_plain_scores(scores), "version": described["version"]})
        out = io.BytesIO()
        send(out, {"scores": pack_scores(scores), "version": described["version"]})
        return fastapi.Response(out.getvalue(), media_type=FRAME)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **described}

    async def score(request: Request) -> Response:
        try:
            _check_token(request.headers.get("authorization", ""), token)
            if places.locked():
                return JSONResponse({"error": "too many requests at once"}, 503, {"Retry-After": "1"})
            async with places:
                framed, body = await _read(request, max_body)
                batch = await run_in_threadpool(_frame if framed else _json, body)
                return await run_in_threadpool(answer, batch, framed)
        except _RefusedError as error:
            return JSONResponse({"error": str(error)}, error.status)
        except GenalignError as error:
            return JSONResponse({"error": " ".join(str(error).split())}, 422)

    app.add_route("/score", score, methods=["POST"])
    return app


def _check_token(given: str, token: str | None) -> None:
    if token is not None and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise _RefusedError(401, "this server wants a bearer token")


async def _read(request: Request, most: int) -> tuple[bool, bytes]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind not in (FRAME, "application/json"):
        raise _RefusedError(415, f"the content type is {kind!r}; send {FRAME} or application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise _RefusedError(413, f"the body has more than {most} bytes; send fewer rows at once")
    except TimeoutError:
        raise _RefusedError(408, f"the body took more than {PATIENCE:g} s") from None
    return kind == FRAME, bytes(body)


def _frame(body: bytes) -> Batch:
    try:
        message = receive(io.BytesIO(body))
        if message is None:
            raise ValueError("it ends too early")
        return _checked(unpack_batch(message))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError) as error:
        raise _RefusedError(400, f"the body is not a frame of a batch: {type(error).__name__} {error}") from error


def _json(body: bytes) -> Batch:
    import json

    try:
        given = json.loads(body)
        rows: list[dict[str, Any]] = [{"text": row} if isinstance(row, str) else row for row in given["prompts"]]
        prompts = [Prompt(str(row["text"]), facts=row.get("facts") or {}, uid=i) for i, row in enumerate(rows)]
        tracks, left = {}, Budget(PIXELS)
        for name, data in given["media"].items():
            if name != "rate":
                tracks[name] = _track(name, data, given["media"].get("rate"), left)
        group = None if given.get("group") is None else torch.tensor(given["group"], dtype=torch.long)
        return _checked((prompts, Media(**tracks), group))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, RecursionError) as error:
        raise _RefusedError(400, f"the body is not a batch in JSON: {type(error).__name__} {error}") from error


def _checked(batch: Batch) -> Batch:
    prompts, media, group = batch
    if len(prompts) != media.rows or (group is not None and tuple(group.shape) != (len(prompts),)):
        raise ValueError(f"{len(prompts)} prompts, {media.rows} rows of media, or a group of another length")
    return batch


def _track(name: str, data: Sequence[Any], rate: float | None, left: Budget) -> Track:
    if name not in MEDIA:
        raise ValueError(f"{name!r} is not a medium; known are {', '.join(MEDIA)}")
    return track_of([MEDIA[name].decode(row, rate, left) for row in data])


def _on(media: Media, device: str) -> Media:
    def moved(data: Any) -> Any:
        if isinstance(data, Tensor):
            return data.to(device)
        return [row.to(device) if isinstance(row, Tensor) else row for row in data]

    return Media(**{name: replace(track, held=moved(track.held)) for name, track in media.items()})


def _plain_scores(scores: Scores) -> Mapping[str, Any]:
    """Scores as JSON: null, never a number, where there is nothing to read."""

    def shown(values: Tensor, valid: Tensor) -> list[Any]:
        pairs = zip(values.tolist(), valid.tolist(), strict=True)
        return [value if known and value == value else None for value, known in pairs]

    packed = pack_scores(scores)
    rows = [shown(values, valid) for values, valid in zip(scores.values, scores.valid, strict=True)]
    total = shown(scores.total, scores.total_valid)
    kept = {key: packed[key].tolist() for key in ("valid", "failed")}
    return {"names": list(scores.names), "values": rows, **kept, "total": total, "info": packed["info"]}


def serve(reward: Reward, host: str, port: int, **settings: Any) -> None:
    """Serve until interrupted. `settings`: as `application` takes them.

    Raises:
        UsageError: uvicorn is not installed, or a host that others can reach without a token.
    """
    if host not in ("127.0.0.1", "::1", "localhost") and not settings.get("token"):
        raise UsageError(f"{host} can be reached by others; name the variable of a token with --token-env")
    app = application(reward, **settings)
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)
