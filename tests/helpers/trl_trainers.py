"""TRL's own loss code, called on given numbers with as little of a trainer around it as it reads."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


def fake_trainer(**extra: Any) -> SimpleNamespace:
    accelerator = SimpleNamespace(
        device="cpu",
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        num_processes=1,
    )
    metrics: dict[str, Any] = {"train": defaultdict(list)}
    return SimpleNamespace(model=torch.nn.Module(), accelerator=accelerator, _metrics=metrics, **extra)


def grpo_loss(
    logp: Tensor, old: Tensor, ref: Tensor, advantage: Tensor, mask: Tensor, loss_type: str, **settings: Any
) -> tuple[Tensor, dict[str, list[float]]]:
    """GRPOTrainer's loss of a batch (B,S), and what it logs."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    keys = {"delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    known = {"importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.3} | settings
    trainer = fake_trainer(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        loss_type=loss_type,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1.0,
        max_completion_length=logp.shape[1],
        args=SimpleNamespace(**keys, steps_per_generation=1),
        **known,
    )
    inputs = {
        "prompt_ids": torch.zeros(len(logp), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(logp), 1, dtype=torch.long),
        "completion_ids": torch.zeros(logp.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantage,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    return grpo.GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics["train"]


def rloo_loss(logp: Tensor, old: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """RLOOTrainer's loss of a batch (B,S), clipped to [0.8, 1.3]."""
    rloo = pytest.importorskip("trl.trainer.rloo_trainer")
    trainer = fake_trainer(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.3,
    )
    inputs = {
        "prompt_ids": torch.zeros(len(logp), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(logp), 1, dtype=torch.long),
        "completion_ids": torch.zeros(logp.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantage,
        "old_logps": (old * mask).sum(1),
    }
    return rloo.RLOOTrainer._compute_loss(trainer, None, inputs)


def kto_loss(
    policy: Tensor, reference: Tensor, mask: Tensor, good: Tensor, beta: float, weights: tuple[float, float]
) -> Tensor:
    """KTOTrainer's loss of rows (B,S), whose own log-ratios stand for those of answers to other prompts."""
    kto = pytest.importorskip("trl.trainer.kto_trainer")
    shape = tuple(policy.shape)

    def model(values: Tensor):
        rest = {"entropy": torch.zeros(shape), "mean_logits": torch.zeros(shape)}
        return lambda **kwargs: SimpleNamespace(log_probs=values * mask, **rest)

    trainer = fake_trainer(
        aux_loss_enabled=False,
        calculate_KL=True,
        precompute_ref_logps=False,
        ref_model=model(reference),
        loss_type="kto",
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer.model.is_gradient_checkpointing = False
    trainer._compute_kl_logps = lambda which, batch: kto.KTOTrainer._compute_kl_logps(trainer, which, batch)
    own = {
        "input_ids": torch.zeros(shape[0], shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(shape[0], shape[1] + 1, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(shape[0], 1, dtype=torch.long), mask.long()], 1),
    }
    inputs = {**own, **{f"KL_{name}": value for name, value in own.items()}, "label": good}
    return kto.KTOTrainer._compute_loss(trainer, model(policy), inputs, False)


def dpo_loss(policy: Tensor, reference: Tensor, mask: Tensor, kinds: dict[str, float], beta: float, smooth: float):
    """DPOTrainer's loss of winners (the first half) and losers (2P,S), as a weighted sum of kinds."""
    dpo = pytest.importorskip("trl.trainer.dpo_trainer")
    shape = tuple(policy.shape)

    def model(values: Tensor):
        rest = {"entropy": torch.zeros(shape), "mean_logits": torch.zeros(shape), "is_top1": torch.zeros(shape).bool()}
        return lambda **kwargs: SimpleNamespace(log_probs=values, **rest)

    trainer = fake_trainer(
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        ref_model=model(reference),
        f_divergence_type="reverse_kl",
        loss_types=list(kinds),
        loss_weights=list(kinds.values()),
        beta=beta,
        label_smoothing=smooth,
        use_weighting=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer.model.is_gradient_checkpointing = False
    rows, columns = shape
    inputs = {
        "input_ids": torch.zeros(rows, columns + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, columns + 1, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask.long()], 1),
    }
    return dpo.DPOTrainer._compute_loss(trainer, model(policy), inputs, False)
