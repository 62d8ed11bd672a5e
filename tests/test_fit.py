"""The optimization loop: what moves, how fast, and when it stops."""

from __future__ import annotations

import math

import pytest
import torch

from avtool.errors import AvtoolError
from avtool.fit import Stage, make_optimizer, run_stage, schedule_factor


def quadratic(params: dict[str, torch.Tensor]):
    def loss(step: int):
        total = sum(((p - 3) ** 2).sum() for p in params.values())
        return total, {"total": total.detach()}

    return loss


def test_only_named_parameters_move() -> None:
    params = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}
    result = run_stage(Stage("s", 50, {"a": 0.1, "b": 0.0}), params, quadratic(params))
    assert params["a"].abs().min() > 0.5 and params["b"].abs().max() == 0 and params["c"].abs().max() == 0
    assert not params["b"].requires_grad and result.steps == 50 and not result.stopped_early


def test_learning_rates_per_group_are_the_first_step() -> None:
    params = {"fast": torch.zeros(1), "slow": torch.zeros(1)}
    run_stage(Stage("s", 1, {"fast": 1e-2, "slow": 1e-4}, schedule="constant"), params, quadratic(params))
    assert params["fast"].item() == pytest.approx(1e-2, rel=1e-4)
    assert params["slow"].item() == pytest.approx(1e-4, rel=1e-4)


def test_unknown_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="nose"):
        make_optimizer(Stage("s", 1, {"nose": 1.0}), {"a": torch.zeros(1)})


def test_cosine_with_warm_up() -> None:
    stage = Stage("s", 100, {"a": 1.0}, warmup=10, final_factor=0.1)
    assert schedule_factor(stage, 0, 0.0) == pytest.approx(0.1)
    assert schedule_factor(stage, 50, 0.5) == pytest.approx(0.55)
    assert schedule_factor(stage, 99, 1.0) == pytest.approx(0.1)
    assert schedule_factor(Stage("s", 100, {}, schedule="constant"), 99, 0.99) == 1.0


def test_not_finite_names_stage_and_term() -> None:
    a = torch.zeros(1)

    def loss(step: int):
        bad = a.sum() * (math.nan if step == 3 else 1.0)
        return bad + 0 * a.sum(), {"good": 1.0, "ssim": bad.detach()}

    with pytest.raises(AvtoolError, match="'polish'.*nan in ssim at step 3"):
        run_stage(Stage("polish", 9, {"a": 0.1}), {"a": a}, loss)


def test_callback_stops() -> None:
    params = {"a": torch.zeros(1)}
    result = run_stage(Stage("s", 50, {"a": 0.1}), params, quadratic(params), lambda step, loss, parts: step == 4)
    assert result.steps == 5 and result.stopped_early


def test_time_limit_ends_with_a_finished_cosine() -> None:
    params, factors = {"a": torch.zeros(1)}, []
    stage = Stage("s", 10**9, {"a": 0.1})
    optimizer = make_optimizer(stage, params)
    result = run_stage(
        stage, params, quadratic(params), lambda *_: factors.append(optimizer.param_groups[0]["lr"]) or False,
        optimizer=optimizer, time_limit=0.3,
    )  # fmt: skip
    assert result.stopped_early and 0.25 < result.seconds < 2.0
    assert factors[0] > 0.09 and factors[-1] < 0.01
    assert run_stage(stage, params, quadratic(params), time_limit=0.3, elapsed=0.31).steps == 0
