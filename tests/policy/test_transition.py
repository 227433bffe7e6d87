"""The step kernel against closed forms, the papers' numbers, and diffusers' own schedulers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from genalign.policy.schedule import path_of
from genalign.policy.settings import Sampler
from genalign.policy.transition import StepTable, flow_path, kernel_rows, preserving_path, step_table
from genalign.types import GenalignError, UsageError

SD35 = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]  # shift 3 applied twice, T = 10
KERNELS = ("flow-sde", "cps", "dance", "ddim", "ode")


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latent_diffusion_betas(**config) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, **config
    )


def slope(table: StepTable, i: int) -> float:
    """|d mu / d out|; the mean is linear in the output."""
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    return float((table.mean(i, zero, one) - table.mean(i, zero, zero)).abs())


def test_settings_and_kernels_agree() -> None:
    assert {Sampler(kernel=kernel).kernel for kernel in KERNELS} == set(KERNELS)


def test_ddim_golden_vectors() -> None:
    abar = latent_diffusion_betas(set_alpha_to_one=False).alphas_cumprod.double()
    path = preserving_path(abar[[951, 451, 51, 1]], abar[[901, 401, 1, 0]])
    table = StepTable(path, *kernel_rows(path, "ddim", 1.0))
    golden = [
        (0.11834, 0.75548, 0.64439, 0.853),
        (0.65029, 0.64488, 0.40155, 0.623),
        (0.99915, 0.00748, 0.04060, 5.43),
        (0.99957, 0.02058, 0.02065, 1.003),
    ]
    for i, (a, b, s, ratio) in enumerate(golden):
        assert [float(table.A[i]), float(table.B[i]), float(table.S[i])] == pytest.approx([a, b, s], abs=1e-5)
        assert slope(table, i) / float(table.S[i]) == pytest.approx(ratio, rel=1e-3)


def test_flow_sde_golden_vectors() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    path = path_of(scheduler)
    assert [*path.s.tolist(), float(path.s_next[-1])] == pytest.approx(SD35, abs=6e-5)
    a, b, s = kernel_rows(path, "flow-sde", 0.7)
    assert s.tolist() == pytest.approx(
        [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225, 0.0063], abs=6e-4
    )
    assert float(b[8]) == pytest.approx(-0.0824, abs=1e-4)
    assert math.hypot(float(b[8]), float(s[8])) == pytest.approx(0.240, abs=1e-3)
    assert torch.equal(a, path.a_next)


def test_overdrawn_steps_become_deterministic() -> None:
    table = step_table(flow_path(SD35), "flow-sde", 0.7)
    assert table.stochastic == list(range(8))
    assert bool((table.B >= 0).all())
    assert float(table.B[8]) == pytest.approx(0.0089)
    assert float(step_table(flow_path(SD35), "cps", 1.0).S[8]) == pytest.approx(0.0089)


def test_flow_sde_equals_the_textbook_form() -> None:
    """x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt, Flow-GRPO."""
    path = flow_path(SD35)
    table = StepTable(path, *(row.clamp_min(0) for row in kernel_rows(path, "flow-sde", 0.4)))
    x, v = rows(2, 3, 5).double(), rows(2, 3, 5, seed=1).double()
    for i in range(1, 7):
        sigma, dt = SD35[i], SD35[i + 1] - SD35[i]
        s = 0.4 * math.sqrt(sigma / (1 - sigma))
        theirs = x * (1 + s**2 * dt / (2 * sigma)) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
        torch.testing.assert_close(table.mean(i, x, v), theirs, rtol=1e-12, atol=1e-12)
        assert float(table.S[i]) == pytest.approx(s * math.sqrt(-dt), rel=1e-12)


@pytest.mark.parametrize("kernel", ["cps", "ddim"])
@pytest.mark.parametrize("path", [flow_path(SD35), preserving_path([0.1, 0.4, 0.9], [0.4, 0.9, 0.999])])
def test_these_kernels_keep_the_noise_level(kernel, path) -> None:
    table = step_table(path, kernel, 0.6)
    torch.testing.assert_close(table.B**2 + table.S**2, path.s_next**2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_equals_diffusers(eta, predicts, clip) -> None:
    scheduler = latent_diffusion_betas(prediction_type=predicts)
    scheduler.register_to_config(clip_sample=clip, clip_sample_range=0.8)
    scheduler.set_timesteps(7)
    table = step_table(path_of(scheduler), "ddim", eta)
    for i, t in enumerate(scheduler.timesteps):
        x, out, z = rows(2, 4, 3, seed=i), rows(2, 4, 3, seed=99 + i), rows(2, 4, 3, seed=200 + i)
        theirs = scheduler.step(out, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
        ours = table.step(i, table.mean(i, x, out), z, torch.float32)
        # Where x0_hat reaches 1e2 (epsilon at high noise) float32 carries 1e-6 of that.
        assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, float(table.endpoints(i, x, out)[0].abs().max()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ode_equals_diffusers_euler(shift) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(6)
    table = step_table(path_of(scheduler), "ode", 0.0)
    x = rows(2, 4, 3)
    for i, t in enumerate(scheduler.timesteps):
        v = rows(2, 4, 3, seed=1 + i)
        theirs = scheduler.step(v, t, x).prev_sample
        torch.testing.assert_close(table.mean(i, x, v), theirs, rtol=1e-6, atol=1e-6)
        x = theirs


@pytest.mark.parametrize("kernel", KERNELS[:-1])
def test_density_and_kl_equal_torchs_normal(kernel) -> None:
    table = step_table(flow_path(SD35), kernel, 0.5)
    i = 3
    x, v, other = rows(4, 2, 6), rows(4, 2, 6, seed=1), rows(4, 2, 6, seed=2)
    mean, mean_other = table.mean(i, x, v), table.mean(i, x, other)
    x_next = table.step(i, mean, rows(4, 2, 6, seed=3), torch.float32)
    std = float(table.S[i])
    normal, normal_other = (torch.distributions.Normal(m.double(), std) for m in (mean, mean_other))
    centred = (normal.log_prob(x_next.double()) + normal.entropy()).flatten(1).sum(1)
    torch.testing.assert_close(table.logp(i, x_next, mean).double(), centred, rtol=1e-6, atol=1e-5)
    kl = torch.distributions.kl_divergence(normal, normal_other).flatten(1).sum(1)
    torch.testing.assert_close(table.kl(i, mean, mean_other).double(), kl, rtol=1e-5, atol=0)
    assert bool((table.kl(i, mean, mean) == 0).all())


def test_rounding_comes_before_scoring() -> None:
    table = step_table(flow_path(SD35), "cps", 0.7)
    mean = rows(1, 64)
    stored = table.step(5, mean, rows(1, 64, seed=1), torch.bfloat16)
    assert stored.dtype == torch.bfloat16
    assert torch.equal(table.logp(5, stored, mean), table.logp(5, stored.float(), mean))


def exact_velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The flow model of data N(0, 1): E[eps - x0 | x]."""
    return x * (sigma - (1 - sigma)) / (sigma**2 + (1 - sigma) ** 2)


def terminal_std(kernel: str, noise: float, steps: int) -> float:
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    table = step_table(flow_path(sigmas), kernel, noise)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    for i in range(steps):
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = table.step(i, table.mean(i, x, exact_velocity(x, float(sigmas[i]))), z, x.dtype)
    return float(x.std())


@pytest.mark.parametrize(("kernel", "noise"), [("ode", 0.0), ("flow-sde", 0.7), ("dance", 0.3)])
def test_fine_steps_preserve_the_marginal(kernel, noise) -> None:
    """Data N(0, 1) must come out with std 1 (20,000 draws: one sigma is 0.005)."""
    assert terminal_std(kernel, noise, 400) == pytest.approx(1.0, abs=0.02)


def test_window_leaves_the_rest_to_the_ode() -> None:
    path = flow_path(SD35)
    table, ode = step_table(path, "flow-sde", 0.7).window(2, 3), step_table(path, "ode", 0.0)
    assert table.stochastic == [2, 3, 4]
    outside = [0, 1, 5, 6, 7, 8, 9]
    assert torch.equal(table.B[outside], ode.B[outside])
    assert torch.equal(table.B[2:5], step_table(path, "flow-sde", 0.7).B[2:5])


def test_kernels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="flow-matching"):
        step_table(preserving_path([0.1], [0.2]), "flow-sde", 0.7)
    with pytest.raises(UsageError, match="outside"):
        step_table(flow_path(SD35), "cps", 1.5)
    path = flow_path(SD35)
    with pytest.raises(GenalignError, match="step 8 of 10 has B"):
        StepTable(path, *kernel_rows(path, "flow-sde", 0.7))


def block_means(x: torch.Tensor, side: int) -> torch.Tensor:
    """Orthonormal coordinates of what blocks share: block sums over the side, (R, C, H/side, W/side)."""
    rows_, channels, height, width = x.shape
    return x.reshape(rows_, channels, height // side, side, width // side, side).sum((3, 5)) / side


def test_shared_noise_is_scored_by_its_block_means() -> None:
    table = step_table(flow_path(SD35), "flow-sde", 0.7, block=4)
    i, x = 3, rows(3, 2, 8, 8)
    mean, other = table.mean(i, x, rows(3, 2, 8, 8, seed=1)), table.mean(i, x, rows(3, 2, 8, 8, seed=2))
    x_next = table.step(i, mean, rows(3, 2, 8, 8, seed=3), torch.float32)
    ours, theirs, moved = (block_means(t.double(), 4) for t in (mean, other, x_next))
    normal, normal_other = (torch.distributions.Normal(m, float(table.S[i])) for m in (ours, theirs))
    centred = (normal.log_prob(moved) + normal.entropy()).flatten(1).sum(1)
    torch.testing.assert_close(table.logp(i, x_next, mean).double(), centred, rtol=1e-6, atol=1e-5)
    kl = torch.distributions.kl_divergence(normal, normal_other).flatten(1).sum(1)
    torch.testing.assert_close(table.kl(i, mean, other).double(), kl, rtol=1e-5, atol=1e-6)
    assert table.scored(x[0]) == moved[0].numel() == 8
    noise = (x_next - mean).reshape(3, 2, 2, 4, 2, 4)
    torch.testing.assert_close(noise, noise.mean((3, 5), keepdim=True).expand_as(noise), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["flow-sde", "cps"])
def test_each_frame_of_a_video_shares_its_noise_as_a_picture_does(kernel) -> None:
    """(R,C,F,H,W): what is drawn, scored and compared is the frames' own, one by one."""
    table = step_table(flow_path(SD35), kernel, 0.7, block=4)
    x, v, w, noise = (rows(2, 3, 5, 8, 4, seed=k) for k in range(4))
    mean, other = table.mean(3, x, v), table.mean(3, x, w)
    x_next = table.step(3, mean, noise, torch.float32)
    means, others = ([table.mean(3, x[:, :, f], out[:, :, f]) for f in range(5)] for out in (v, w))
    steps = [table.step(3, m, noise[:, :, f], torch.float32) for f, m in enumerate(means)]
    torch.testing.assert_close(x_next, torch.stack(steps, 2), rtol=0, atol=0)
    logps = [table.logp(3, *pair) for pair in zip(steps, means, strict=True)]
    torch.testing.assert_close(table.logp(3, x_next, mean), torch.stack(logps).sum(0), rtol=1e-5, atol=1e-5)
    kls = [table.kl(3, *pair) for pair in zip(means, others, strict=True)]
    torch.testing.assert_close(table.kl(3, mean, other), torch.stack(kls).sum(0), rtol=1e-5, atol=1e-5)
    assert table.scored(x[0]) == 3 * 5 * 2 * 1


def test_detail_follows_the_ode_where_noise_is_shared() -> None:
    shared, ode = step_table(flow_path(SD35), "cps", 0.7, block=2), step_table(flow_path(SD35), "ode", 0.0)
    x, v = rows(2, 1, 4, 4), rows(2, 1, 4, 4, seed=1)
    gap = (shared.mean(4, x, v) - ode.mean(4, x, v)).reshape(2, 1, 2, 2, 2, 2)
    assert float(gap.abs().max()) > 0.05
    torch.testing.assert_close(gap, gap.mean((3, 5), keepdim=True).expand_as(gap), rtol=0, atol=1e-6)


def test_shared_noise_preserves_the_marginal() -> None:
    """Data N(0, 1), fine steps: block means and the rest must both come out with std 1."""
    sigmas = torch.linspace(1, 0, 401, dtype=torch.float64)
    table = step_table(flow_path(sigmas), "flow-sde", 0.7, block=2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 1, 2, 2, generator=generator, dtype=torch.float64)
    for i in range(400):
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = table.step(i, table.mean(i, x, exact_velocity(x, float(sigmas[i]))), z, x.dtype)
    assert float(block_means(x, 2).std()) == pytest.approx(1.0, abs=0.04)
    assert float((x[..., 0, 0] - x[..., 0, 1]).std()) == pytest.approx(math.sqrt(2), abs=0.05)


def test_latents_that_have_no_blocks_are_refused() -> None:
    table = step_table(flow_path(SD35), "cps", 0.7, block=4)
    with pytest.raises(UsageError, match="noise_block 4 needs latents"):
        table.mean(1, rows(1, 16, 8), rows(1, 16, 8))
    with pytest.raises(UsageError, match=r"not \(4, 6, 6\)"):
        table.mean(1, rows(1, 4, 6, 6), rows(1, 4, 6, 6))
    with pytest.raises(UsageError, match=r"not \(4, 3, 8, 6\)"):
        table.mean(1, rows(1, 4, 3, 8, 6), rows(1, 4, 3, 8, 6))
