"""A second pipeline of the same networks, to decode with while the first one is in the middle of sampling."""

from __future__ import annotations

import copy

from genalign.policy.pipe import Pipe
from genalign.policy.text import TextMemo

HOOKED = ("encode_prompt", "prepare_latents")  # what a run puts on the pipeline itself


def twin(pipe: Pipe) -> Pipe:
    """The same networks and settings, with a scheduler, a text memory and a pipeline state of its own.

    A pipeline keeps the state of its call on itself (its scale, its scheduler's place), so that a guide which decodes
    needs another one.
    """
    other = copy.copy(pipe)
    other.pipeline = copy.copy(pipe.pipeline)
    for name in HOOKED:
        other.pipeline.__dict__.pop(name, None)
    other.kernel_schedulers = {name: copy.deepcopy(scheduler) for name, scheduler in pipe.kernel_schedulers.items()}
    for name, scheduler in other.kernel_schedulers.items():
        scheduler.__dict__.pop("step", None)
        scheduler.__dict__.pop("set_timesteps", None)
        setattr(other.pipeline, name, scheduler)
    other.stage = copy.copy(pipe.stage)
    other.stage.denoisers = copy.copy(pipe.stage.denoisers)
    other.stage.pipeline, other.stage._text = other.pipeline, TextMemo(other.pipeline)
    return other
