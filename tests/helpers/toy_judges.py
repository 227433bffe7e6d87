"""A tiny random vision-language model, and a server on a loopback port that plays an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

WORDS = (
    "<pad> <bos> <eos> <unk> <image> user system yes no Yes Answer or a cat dog two star is it this picture good ? . "
    "One Two"
)
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %} {% endfor %}"
)


def tiny_vlm(folder: Path, chat: bool = True) -> Path:
    """A LlavaForConditionalGeneration of random weights for 16-pixel pictures, with its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary = {word: i for i, word in enumerate(WORDS.split())}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8),
        text_config=LlamaConfig(
            vocab_size=len(vocabulary), max_position_embeddings=256, initializer_range=0.3,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, **small,
        ),
        image_token_index=vocabulary["<image>"],
        vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT if chat else None,
    ).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI app on a free port of this machine; its address without a trailing slash."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the test's server did not start")
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


Reply = dict[str, Any] | Response


class Scripted:
    """An endpoint that answers by `answer(request body, number of the call)`; keeps what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.app = FastAPI()
        lock = threading.Lock()

        async def body_of(request: Request) -> tuple[dict[str, Any], dict[str, str]]:
            return await request.json(), dict(request.headers)

        @self.app.post("/v1/chat/completions")
        def completions(given: tuple = Depends(body_of)) -> Any:
            with lock:
                self.asked.append(given[0])
                self.headers.append(given[1])
                number = len(self.asked) - 1
            made = answer(given[0], number)
            return made if isinstance(made, Response) else JSONResponse(made)


def said(text: str, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def likely(**tokens: float) -> dict[str, Any]:
    """A one-token answer with these log-probabilities; underscores in names stand for blanks."""
    listed = [{"token": token.replace("_", " "), "logprob": logprob} for token, logprob in tokens.items()]
    top = {"token": listed[0]["token"], "logprob": listed[0]["logprob"], "top_logprobs": listed}
    return {"choices": [{"message": {"content": "?"}, "finish_reason": "length", "logprobs": {"content": [top]}}]}


def pieces(body: dict[str, Any]) -> list[Any]:
    """What the user's turn of a request holds: texts, and pictures as tensors (3,H,W) in [0,1]."""
    from genalign.media.image import from_pil

    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return [content]
    import PIL.Image

    found: list[Any] = []
    for piece in content:
        if piece["type"] == "text":
            found.append(piece["text"])
        else:
            data = piece["image_url"]["url"].partition("base64,")[2]
            found.append(from_pil(PIL.Image.open(io.BytesIO(base64.b64decode(data)))))
    return found
