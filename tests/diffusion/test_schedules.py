import math

import pytest
import torch

from svdcli.diffusion import schedules
from svdcli.diffusion.schedules import custom, exponential, karras, make_schedule, uniform
from svdcli.errors import UsageError

# The SVD release with 25 steps, to the four digits that were noted.
SVD_25 = """700 545.7 421.6 322.5 244 182.5 134.9 98.27 70.54 49.81 34.54 23.47 15.59 10.1 6.354 3.87
    2.269 1.273 0.6781 0.3394 0.1574 0.0664 0.0248 0.007882 0.002 0"""


def test_karras_is_the_schedule_of_the_release():
    expected = torch.tensor([float(v) for v in SVD_25.split()])
    torch.testing.assert_close(karras(25), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 25, 30])
def test_karras_equals_the_scheduler_of_diffusers(num_steps):
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
    scheduler.set_timesteps(num_steps)
    torch.testing.assert_close(karras(num_steps), scheduler.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [karras, exponential, uniform])
def test_every_schedule_runs_from_max_to_min_and_then_zero(make):
    sigmas = make(10, 0.01, 80.0)
    assert sigmas.shape == (11,) and sigmas.dtype == torch.float32
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    torch.testing.assert_close(sigmas[[0, -2]], torch.tensor([80.0, 0.01]), rtol=1e-6, atol=0)


def test_spacing():
    torch.testing.assert_close(exponential(4, 0.1, 100), torch.tensor([100.0, 10.0, 1.0, 0.1, 0.0]))
    torch.testing.assert_close(uniform(4, 1, 4), torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]))
    torch.testing.assert_close(karras(9, 0.1, 50, rho=1), uniform(9, 0.1, 50))
    torch.testing.assert_close(karras(9, 0.1, 50, rho=1e5), exponential(9, 0.1, 50), rtol=1e-3, atol=0)


def test_a_custom_list_may_leave_out_its_zero():
    expected = torch.tensor([700.0, 10.0, 1.0, 0.0])
    for given in ([700, 10, 1], [700, 10, 1, 0], "700,10,1", "700, 10, 1, 0"):
        assert torch.equal(make_schedule(given, 99), expected)


def test_names_reach_their_schedule():
    for name, make in schedules.SCHEDULES.items():
        assert torch.equal(make_schedule(name, 6, 0.01, 90.0), make(6, 0.01, 90.0))
    assert torch.equal(make_schedule("karras", 6, 0.01, 90.0, 3.0), karras(6, 0.01, 90.0, 3.0))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(num_steps=0), "steps"),
        (dict(num_steps=-3), "steps"),
        (dict(num_steps=math.nan), "steps"),
        (dict(num_steps=10**9), "steps"),
        (dict(sigma_min=math.nan), "sigma_min"),
        (dict(sigma_min=0.0), "sigma_min"),
        (dict(sigma_max=math.inf), "sigma_max"),
        (dict(sigma_min=3.0, sigma_max=3.0), "sigma_min"),
        (dict(sigma_min=9.0, sigma_max=3.0), "sigma_min"),
        (dict(rho=0.0), "rho"),
        (dict(rho=-1.0), "rho"),
        (dict(rho=math.nan), "rho"),
        (dict(rho=1e-3), "rho"),
        (dict(sigma_max=1e39), "sigma_max"),
        (dict(sigma_min=1e-60), "sigma_min"),
        (dict(sigma_min=1.0, sigma_max=1.0000001), "sigma_min"),
        (dict(schedule="carras"), "schedule"),
        (dict(schedule=""), "schedule"),
        (dict(schedule="3,4"), "schedule"),
        (dict(schedule="3,3"), "schedule"),
        (dict(schedule="3,nan,1"), "schedule"),
        (dict(schedule="3,-1"), "schedule"),
        (dict(schedule="3,0,0"), "schedule"),
        (dict(schedule=[]), "schedule"),
        (dict(schedule=[0.0]), "schedule"),
        (dict(schedule=[math.inf, 1.0]), "schedule"),
    ],
)
def test_a_bad_option_is_named_in_one_sentence(options, name):
    with pytest.raises(UsageError, match=name) as error:
        make_schedule(**{"schedule": "karras", "num_steps": 10, **options})
    assert error.value.message.endswith(".") and "\n" not in error.value.message
    assert error.value.hint


def test_custom_is_public():
    assert torch.equal(custom([2.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]))
