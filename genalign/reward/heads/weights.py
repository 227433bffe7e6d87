"""Published weights: found in a folder, in a file or on the hub, read from safetensors alone, and fitted key by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genalign.files.untrusted import check_model, check_shards
from genalign.reward.base import resolve_model
from genalign.types import UsageError

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
CONVERT = (  # for the user to run, once: genalign itself never unpickles
    "from torch import load; from safetensors.torch import save_file; "
    "w = load('{old}', map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
    "save_file({{k: v.clone() for k, v in w.items() if hasattr(v, 'shape')}}, '{new}')"
)


def how_to_convert(pickled: Path | str) -> str:
    """The end of a sentence that refuses a pickle: what turns it into safetensors (torch's restricted unpickler)."""
    new = Path(pickled).with_suffix(".safetensors")
    return f'genalign reads no pickled weights; convert it once: python -c "{CONVERT.format(old=pickled, new=new)}"'


def find_weights(where: str | Path, folder: Path) -> str:
    """A file or folder relative to `folder`, a shipped asset, or a hub id: see `model_path`."""
    return resolve_model(where, folder)


def weights_file(where: str | Path, name: str) -> Path:
    """The .safetensors file `name` of a folder or a hub id; or `where` itself, when that is a file.

    Raises:
        UsageError: there is none (an absent download, or pickled weights: the sentence says how to convert them).
    """
    place = Path(where)
    if place.suffix in PICKLES:
        raise UsageError(f"{place} is a pickle; {how_to_convert(place)}")
    if place.is_file():
        return place
    if not place.is_dir():
        return hub_file(str(where), name)
    if (place / name).is_file():
        return place / name
    pickled = next((file for file in sorted(place.iterdir()) if file.suffix in PICKLES), None)
    if pickled is not None:
        raise UsageError(f"{place} has no {name}, only {pickled.name}; {how_to_convert(pickled)}")
    raise UsageError(f"{place} has no {name}; put the published weights there, as safetensors")


def hub_file(repo: str, name: str) -> Path:
    """A file of a hub repository: from the local cache, or downloaded unless HF_HUB_OFFLINE is set.

    Raises:
        UsageError: it is neither here nor to be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name))
    except LocalEntryNotFoundError as error:
        raise UsageError(
            f"{name} of {repo} is not on this machine and cannot be fetched; download it once with "
            f"'hf download {repo}', or name a folder that holds it"
        ) from error
    except EntryNotFoundError as error:
        raise UsageError(f"{repo} has no {name}; if it holds a pickle, {how_to_convert('downloaded.pt')}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} of {repo} cannot be fetched: {' '.join(str(error).split())}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors file, or of all the shards of an index.json beside it.

    Raises:
        UsageError: unreadable, or not safetensors.
    """
    try:
        if path.suffix == ".json":
            state: dict[str, Tensor] = {}
            for shard in check_shards(path):
                state |= load_file(shard)
            return state
        return load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from error


def fit(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> nn.Module:
    """Put `state` into `net`, which may be built without memory (accelerate's init_empty_weights).

    Every key of the network must be there in its shape; keys that it does not have are left out.

    Raises:
        UsageError: naming the first key that is absent or of another shape.
    """
    for key, own in net.state_dict().items():
        if key not in state:
            raise UsageError(f"{source} has no weight {key!r}; it is not a checkpoint of {type(net).__name__}")
        if state[key].shape != own.shape:
            raise UsageError(
                f"weight {key!r} of {source} has shape {tuple(state[key].shape)}, but "
                f"{type(net).__name__} needs {tuple(own.shape)}"
            )
    net.load_state_dict({key: state[key] for key in net.state_dict()}, assign=True)
    return net.eval().requires_grad_(False)


def from_hub(kind: Any, model: str | Path, **settings: Any) -> Any:
    """`kind.from_pretrained(model)`, with failures in one sentence; models from safetensors only, frozen, in eval.

    Raises:
        UsageError: it cannot be loaded, for example because its weights are a pickle.
    """
    learned = hasattr(kind, "from_config") or (isinstance(kind, type) and issubclass(kind, nn.Module))
    if learned:
        settings = {"use_safetensors": True, "dtype": torch.float32, **settings}
    if kind.__name__.startswith("Auto"):  # those whose class a model's own files choose
        settings = {**settings, "trust_remote_code": False}
    check_model(model)
    try:
        made = kind.from_pretrained(model, **settings)
    except (OSError, ValueError, SafetensorError) as error:
        pickled = Path(model).is_dir() and next(Path(model).glob("*.bin"), None)
        hint = f"; {how_to_convert(pickled)}" if pickled else f"; if it is not here yet: hf download {model}"
        raise UsageError(f"{model} cannot be loaded: {' '.join(str(error).split())}{hint}") from error
    return made.eval().requires_grad_(False) if isinstance(made, nn.Module) else made


def renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The same tensors under the names of another implementation."""
    return {rename(key): value for key, value in state.items()}
