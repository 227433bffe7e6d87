"""The launcher's environment: how many processes there are to be, and what it was asked for beside that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from genalign.types import UsageError

TWO_RANKS = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no -m genalign train RECIPE"
)


class Setting(NamedTuple):
    """What a launcher can be asked for and training does not do.

    variable: of the environment; idle: its values that ask for nothing; cure: what to do instead.
    """

    variable: str
    idle: tuple[str, ...]
    name: str
    cure: str


WITHOUT = "launch without it"
SPLIT = "to split the frozen weights over ranks set train.backend=fsdp2, and launch without it"
UNEVEN = f"ZeRO needs ranks that make equal numbers of passes, which those of genalign do not; {SPLIT}"
WITHOUT_EFFECT = (
    Setting("ACCELERATE_USE_FSDP", ("false",), "FSDP", SPLIT),
    Setting("ACCELERATE_USE_DEEPSPEED", ("false",), "DeepSpeed", UNEVEN),
    Setting("ACCELERATE_USE_MEGATRON_LM", ("false",), "Megatron-LM", f"every rank holds the whole model; {WITHOUT}"),
    Setting(
        "ACCELERATE_USE_PARALLELISM_CONFIG", ("false",), "a parallelism config",
        f"every rank holds the whole model and its own prompts; {WITHOUT}",
    ),
    Setting(
        "ACCELERATE_MIXED_PRECISION", ("no",), "mixed precision",
        "set policy.dtype (the adapter is float32 anyway) and launch with --mixed_precision no",
    ),
    Setting("ACCELERATE_DYNAMO_BACKEND", ("no",), "torch.compile", "launch with --dynamo_backend no"),
    Setting(
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1",), "gradient accumulation",
        "policy.batch_size is what one forward pass holds, and an update is over all samples whatever it is",
    ),
    Setting("ACCELERATE_GRADIENT_CLIPPING", ("none", "auto"), "gradient clipping", "set train.max_grad_norm"),
)  # fmt: skip


def check_launcher(environ: Mapping[str, str], processes: int | None = None) -> None:
    """Refuse a launcher that promised several processes and started one, or anything else that has no effect.

    `processes`: how many there are, once known. `accelerate launch --num_processes 2 --cpu` sets MASTER_PORT and no
    WORLD_SIZE: it would train alone, where its user expects two ranks.

    Raises:
        UsageError: with the command that does start them.
    """
    for setting in WITHOUT_EFFECT:
        value = environ.get(setting.variable, "").lower()
        if value and value not in setting.idle:
            raise UsageError(
                f"the launcher was asked for {setting.name} ({setting.variable}={value}), "
                f"which has no effect: {setting.cure}"
            )
    promised, cure = environ.get("WORLD_SIZE"), f"for two ranks on a CPU run {TWO_RANKS}"
    if promised is None and "MASTER_PORT" in environ and "ACCELERATE_MIXED_PRECISION" in environ:
        raise UsageError(f"the launcher set MASTER_PORT but started a single process; {cure}")
    if promised is not None and (not promised.isdigit() or (int(promised) > 1 and "RANK" not in environ)):
        raise UsageError(f"WORLD_SIZE is {promised} but this process has no RANK, so it would train alone; {cure}")
    if promised is not None and processes is not None and int(promised) != processes:
        raise UsageError(f"WORLD_SIZE is {promised} but the number of processes is {processes}; {cure}")


def ranks_promised(environ: Mapping[str, str]) -> tuple[int, int]:
    """Which of how many ranks this process is to be; asked after `check_launcher`."""
    return int(environ.get("RANK", 0)), int(environ.get("WORLD_SIZE", 1))


def join_ranks() -> str:
    """Join the launcher's process group, if there is one; returns this rank's device."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return str(PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device)
