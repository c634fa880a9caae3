import math

import pytest
import torch

from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.noise import NoiseSource
from svdcli.diffusion.samplers import (
    SAMPLERS,
    dpmpp_2m,
    euler,
    euler_ancestral,
    heun,
    initial_state,
    num_evaluations,
)
from svdcli.diffusion.schedules import custom, karras
from svdcli.errors import UsageError

SHAPE = (2, 4, 3, 3)
DATA_STD = 0.7


def gaussian(x, sigma):
    """The exact denoiser of data N(0, DATA_STD^2)."""
    var = DATA_STD**2
    return x * (var / (var + sigma.view(-1, 1, 1, 1, 1) ** 2))


def point(x, sigma):
    """The exact denoiser of data that is always 0: x at sigma is pure noise of that level."""
    return torch.zeros_like(x)


def toy_network(x_in, c_noise):
    return torch.tanh(x_in.roll(1, 1) + c_noise.view(-1, 1, 1, 1, 1))


def error_of(sampler, num_steps):
    """Distance to the closed-form solution x(0) = x(sigma) DATA_STD / sqrt(DATA_STD^2 + sigma^2)."""
    source = NoiseSource([0], SHAPE)
    sigmas = karras(num_steps, 0.002, 10.0)
    x = initial_state(source, sigmas)
    exact = x * DATA_STD / math.sqrt(DATA_STD**2 + 100)
    return (sampler(gaussian, x, sigmas, noise=source) - exact).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "order", "bound"), [(euler, 1, 5e-2), (heun, 2, 2e-3), (dpmpp_2m, 2, 2e-3)]
)
def test_order_of_convergence_on_gaussian_data(sampler, order, bound):
    coarse, fine = error_of(sampler, 40), error_of(sampler, 80)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert fine < bound


def test_ancestral_without_noise_is_euler():
    source = NoiseSource([0], SHAPE)
    sigmas = karras(7)
    x = initial_state(source, sigmas)
    denoise = Denoiser(toy_network)
    torch.testing.assert_close(
        euler_ancestral(denoise, x, sigmas, noise=source, eta=0.0), euler(denoise, x, sigmas, noise=source)
    )


def run_diffusers(scheduler, x, num_steps):
    """The loop of a diffusers pipeline with the toy network."""
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        f = toy_network(scheduler.scale_model_input(x, t), t.reshape(1).expand(len(x)))
        x = scheduler.step(f, t, x, return_dict=False)[0]
    return x


def test_euler_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True,
        prediction_type="v_prediction",
        timestep_type="continuous",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        steps_offset=1,
    )
    source = NoiseSource([0, 1], SHAPE)
    sigmas = karras(25)
    x = initial_state(source, sigmas)
    scheduler.set_timesteps(25)
    torch.testing.assert_close(source.draw() * scheduler.init_noise_sigma, x, rtol=1e-6, atol=0)
    ours = euler(Denoiser(toy_network), x, sigmas, noise=source)
    torch.testing.assert_close(ours, run_diffusers(scheduler, x, 25), rtol=1e-5, atol=1e-5)


def test_dpmpp_2m_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.002,
        sigma_max=700.0,
        sigma_data=1.0,
        prediction_type="v_prediction",
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
    )
    source = NoiseSource([0, 1], SHAPE)
    sigmas = karras(20)
    x = initial_state(source, sigmas)

    ours = dpmpp_2m(Denoiser(toy_network), x, sigmas, noise=source)
    torch.testing.assert_close(ours, run_diffusers(scheduler, x, 20), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "run",
    [
        lambda *a, **k: euler(*a, s_churn=1.0, **k),
        lambda *a, **k: heun(*a, s_churn=1.0, **k),
        lambda *a, **k: euler_ancestral(*a, **k),
        lambda *a, **k: euler_ancestral(*a, eta=0.5, **k),
    ],
)
def test_stochastic_steps_keep_the_marginal_variance(run):
    source = NoiseSource([0], (1, 1, 200, 200))
    sigmas = custom([10.0, 6.0, 3.0, 1.0])
    seen = []
    run(
        point, 10 * source.draw(), sigmas, noise=source, on_step=lambda step: seen.append(step.x.std().item())
    )
    assert seen[:3] == pytest.approx([6.0, 3.0, 1.0], rel=0.02)
    assert seen[3] == 0


@pytest.mark.parametrize(("eta", "sigma_up"), [(1.0, 4.8), (0.5, 2.4), (9.0, 6.0)])
def test_ancestral_noise_has_the_strength_of_the_posterior(eta, sigma_up):
    source = NoiseSource([0], SHAPE)
    seen = []
    x = torch.zeros(1, *SHAPE)
    euler_ancestral(point, x, custom([10.0, 6.0]), noise=source, on_step=seen.append, eta=eta)
    torch.testing.assert_close(seen[0].x, sigma_up * source.stream("step").draw())


def test_churn_really_replaces_noise_and_only_within_its_range():
    source = NoiseSource([0], SHAPE)
    sigmas = custom([10.0, 6.0, 3.0, 1.0])
    x = 10 * source.draw()
    plain = heun(gaussian, x, sigmas, noise=source)
    assert not torch.allclose(heun(gaussian, x, sigmas, noise=source, s_churn=2.0), plain)
    outside = heun(gaussian, x, sigmas, noise=source, s_churn=2.0, s_tmin=20.0, s_tmax=50.0)
    assert torch.equal(outside, plain)


def test_churn_is_capped_as_in_edm():
    levels = []

    def spy(x, sigma):
        levels.append(sigma.item())
        return point(x, sigma)

    source = NoiseSource([0], SHAPE)
    euler(spy, source.draw(), custom([10.0, 4.0]), noise=source, s_churn=1e9)
    assert levels == pytest.approx([10 * math.sqrt(2), 4 * math.sqrt(2)])
    levels.clear()
    euler(spy, source.draw(), custom([10.0, 4.0]), noise=source, s_churn=0.2)
    assert levels == pytest.approx([11.0, 4.4])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    options = {"s_churn": 1.0} if name == "heun" else {}
    sigmas = karras(5)

    def sample(seeds):
        source = NoiseSource(seeds, SHAPE)
        x = initial_state(source, sigmas)
        return SAMPLERS[name](Denoiser(toy_network), x, sigmas, noise=source, **options)

    torch.testing.assert_close(sample([3, 4, 5])[2:], sample([5]), rtol=1e-6, atol=1e-6)


def test_of_a_gaussian_the_temperature_is_what_the_spread_is_multiplied_by():
    source, sigmas = NoiseSource([3, 4], SHAPE), karras(20)
    usual, cool = (
        euler(gaussian, initial_state(source, sigmas, t), sigmas, noise=source) for t in (1.0, 0.5)
    )
    torch.testing.assert_close(cool, 0.5 * usual)


def test_step_noise_does_not_depend_on_what_else_was_drawn():
    source = NoiseSource([3], SHAPE)
    sigmas = karras(5)
    x = initial_state(source, sigmas)
    first = euler_ancestral(gaussian, x, sigmas, noise=source)
    source.draw()
    source.stream("augment").draw()
    assert torch.equal(initial_state(source, sigmas), x)
    assert torch.equal(euler_ancestral(gaussian, x, sigmas, noise=source), first)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_evaluations_steps_and_result(name, num_steps):
    calls, steps = [], []

    def spy(x, sigma):
        assert x.dtype == torch.float32 and sigma.shape == (2,) and (sigma > 0).all()
        calls.append(sigma)
        return gaussian(x, sigma)

    source = NoiseSource([0, 1], SHAPE)
    sigmas = karras(num_steps, 0.01, 20.0)
    x = initial_state(source, sigmas).to(torch.bfloat16)
    out = SAMPLERS[name](spy, x, sigmas, noise=source, on_step=steps.append)
    assert len(calls) == num_evaluations(name, num_steps)
    assert [(s.index, s.total) for s in steps] == [(i, num_steps) for i in range(num_steps)]
    assert torch.equal(torch.tensor([s.sigma for s in steps]), sigmas[:-1])
    assert out.dtype == torch.float32
    assert torch.equal(out, steps[-1].x) and torch.equal(out, steps[-1].x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callers_state_is_left_alone(name):
    source = NoiseSource([0], SHAPE)
    x = source.draw()
    before = x.clone()
    SAMPLERS[name](gaussian, x, custom([1.0, 0.5]), noise=source)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("sampler", "options", "name"),
    [
        (heun, dict(s_churn=-1.0), "s_churn"),
        (euler, dict(s_churn=math.nan), "s_churn"),
        (heun, dict(s_noise=math.inf), "s_noise"),
        (heun, dict(s_tmin=math.nan), "s_tmin"),
        (heun, dict(s_tmin=5.0, s_tmax=1.0), "s_tmax"),
        (heun, dict(s_tmax=math.nan), "s_tmax"),
        (euler_ancestral, dict(eta=-0.1), "eta"),
        (euler_ancestral, dict(eta=math.nan), "eta"),
    ],
)
def test_a_bad_option_is_named(sampler, options, name):
    source = NoiseSource([0], SHAPE)
    with pytest.raises(UsageError, match=name):
        sampler(gaussian, source.draw(), custom([1.0]), noise=source, **options)


def test_an_unknown_sampler_is_named():
    with pytest.raises(UsageError, match="eulr"):
        num_evaluations("eulr", 3)


def test_what_does_not_fit_is_our_bug():
    one, two = NoiseSource([0], SHAPE), NoiseSource([0, 1], SHAPE)
    with pytest.raises(ValueError, match="end in 0"):
        euler(gaussian, one.draw(), torch.tensor([2.0, 1.0]), noise=one)
    with pytest.raises(ValueError, match="noise has shape"):
        euler_ancestral(gaussian, two.draw(), custom([2.0, 1.0]), noise=one)
