"""The base's scores as data: what an evaluation of an unchanged model found, taken up where all that made it agrees.

A file assets/base-rows/MODEL-DIGEST.json holds, for one way to draw (`drawing_digest`), the scores of every sample by
each reward, known by name and version. The digest is of files and settings alone, so that it is the same on every
machine; on another processor a fresh drawing may differ from the rows by rounding, as it does between batch sizes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genalign.evaluation.settings import EvalSettings
from genalign.evaluation.trial import Trial, metrics_of
from genalign.files.atomic import replace_file
from genalign.files.shipped import shipped
from genalign.policy.settings import PolicySettings, Vae
from genalign.types import GenalignError, Reward

DRAWS = {"attention", "call", "system", "template", "max_new_tokens"}  # keys of policy that reach a plain sample
ASKS = {"count", "seeds", "guidance", "steps"}  # keys of eval that do


def room() -> Path:
    """The folder of the rows that are shipped."""
    return shipped("assets", "base-rows")


def drawing_digest(models: Sequence[Path], policy: PolicySettings, settings: EvalSettings, prompts: str) -> str:
    """What the base's samples depend on, as one hash: 16 hexadecimal digits.

    models: folders of the model, of its writer and of what is merged into it, where it has them. prompts: the digest of
    the prompts' file. Left out is what only rounds (the sizes of batches, and the dtype: of 256 pictures of tiny-flow
    the judge sees one otherwise in float32 than in bfloat16), what only reaches rollouts, and the adapter, which is
    off.
    """
    keys = DRAWS | ({"asked_share"} if policy.writer is not None else set())
    if policy.quantization is not None or policy.vae != Vae():  # which base rows that are shipped were not drawn with
        keys |= {"quantization", "vae"}
    levels = policy.sampler.model_dump(mode="json", include={"steps", "sigmas"}) if settings.steps is None else None
    identity = {
        "models": [_files(folder) for folder in models],
        "policy": policy.model_dump(mode="json", include=keys),
        "eval": settings.model_dump(mode="json", include=ASKS),
        "sampler": levels,
        "prompts": prompts,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _files(folder: Path) -> dict[str, str]:
    """Path in the folder -> SHA-256, of all but its card; of a file alone, its own."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if path.is_file() and path.suffix != ".md":
            with path.open("rb") as file:
                found[path.name if path == folder else path.relative_to(folder).as_posix()] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return found


def read_rows(digest: str, trial: Trial) -> tuple[Path, np.ndarray] | None:
    """The file of a drawing, and the values (G, N, J, K) that `trial` would find with the base's weights.

    None where there is no such file, or where it lacks a reward of the trial in its version.

    Raises:
        GenalignError: the file is not what `write_rows` writes.
    """
    for path in sorted(room().glob(f"*-{digest}.json")):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))["rewards"]
            columns: dict[str, Any] = {}
            for reward in trial.rewards:
                found = next((one for one in held if _is_of(one, reward)), None)
                if found is None:
                    return None
                columns |= found["values"]
            values = [np.array(columns[name], dtype=np.float64) for name in trial.names]  # null becomes NaN
            table = np.stack(values, axis=-1)
            if table.shape[:3] != (len(trial.scales), len(trial.prompts), len(trial.seeds)):
                raise ValueError(f"its rows have shape {table.shape[:3]}")
        except (ValueError, KeyError, TypeError) as error:
            raise GenalignError(
                f"{path} does not hold the base's rows ({error}); delete it, or make it again by "
                f"genalign lab build base-rows"
            ) from error
        return path, table
    return None


def _is_of(held: Mapping[str, Any], reward: Reward) -> bool:
    return held["name"] == reward.name and held["version"] == reward.version


def write_rows(folder: Path, model: str, digest: str, drawn: Sequence[tuple[Trial, np.ndarray]]) -> Path:
    """Write the file of one drawing; drawn: trials of it, with their values (G, N, J, K) of the base.

    Raises:
        GenalignError: a sample whose scoring failed, since a failure is not what the base is worth.
    """
    rewards = []
    for trial, values in drawn:
        for reward in trial.rewards:
            own = {}
            for k, name in enumerate(trial.names):
                if name in metrics_of(reward):
                    own[name] = _plain(values[..., k], reward, name)
            rewards.append({"name": reward.name, "version": reward.version, "values": own})
    path = folder / f"{model}-{digest}.json"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"rewards": rewards}, separators=(",", ":")) + "\n")
    return path


def _plain(values: np.ndarray, reward: Reward, name: str) -> list[Any]:
    """(G, N, J) as lists, null where the reward abstains."""
    if np.isinf(values).any():
        raise GenalignError(
            f"reward {reward.name} failed on samples of the base ({name}); mend it and build the rows again"
        )
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()
