import copy

import pytest
import torch
from torch import Tensor, nn

from ml.losses.combine import COMBINES, CombineRule
from ml.specs.losses import composition
from ml.specs.losses.composition import Composition

SPECS = {
    spec.model_fields["type"].annotation.__args__[0]: spec  # type: ignore[union-attr]
    for spec in vars(composition).values()
    if isinstance(spec, type) and issubclass(spec, composition.Combine) and spec is not composition.Combine
}


def _rule(kind: str, terms: int = 2, **fields: float) -> CombineRule:
    return COMBINES[kind](SPECS[kind].model_validate({"type": kind, **fields}), [False] * terms)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


BASE = _numbers(1, 2)


def test_every_way_to_combine_has_a_rule():
    assert set(SPECS) == set(COMBINES)


@pytest.mark.parametrize("kind", sorted(COMBINES))
def test_weights_stay_the_same_within_a_step(kind: str):
    rule = _rule(kind)
    for _ in range(3):
        rule.observe(_numbers(0.5, 4))
        assert torch.equal(rule.weights(BASE), rule.weights(BASE))


@pytest.mark.parametrize("kind", sorted(COMBINES))
def test_the_state_of_a_rule_survives_a_checkpoint(kind: str):
    rule = _rule(kind)
    for epoch in range(3):
        for step in range(2):
            losses = torch.rand(2, dtype=torch.float64) + epoch + step
            if rule.needs_term_gradients:
                gradients = [[torch.randn(3, dtype=torch.float64)] for _ in range(2)]
                rule.merge(gradients, rule.weights(BASE).detach(), losses)
            rule.observe(losses)
        rule.end_epoch()
    if kind == "uncertainty":
        with torch.no_grad():
            next(rule.parameters()).copy_(_numbers(0.3, -0.4))
    fresh = _rule(kind)
    fresh.load_state_dict(copy.deepcopy(rule.state_dict()))
    torch.testing.assert_close(fresh.weights(BASE), rule.weights(BASE), rtol=0, atol=0)
    for one in (fresh, rule):
        torch.manual_seed(5)
        one.observe(_numbers(1, 2))
        one.end_epoch()
    torch.testing.assert_close(fresh.weights(BASE), rule.weights(BASE), rtol=0, atol=0)
    assert kind in ("fixed", "pcgrad") or rule.state_dict()


def test_fixed_weights_are_the_given_ones():
    rule = _rule("fixed")
    rule.observe(_numbers(100, 0.01))
    assert torch.equal(rule.weights(BASE), BASE)
    assert rule.penalty() is None


# normalized


def test_normalized_divides_by_the_moving_average_of_the_steps_before():
    rule = _rule("normalized", decay=0.9)
    assert rule.weights(BASE).tolist() == [1, 2]
    rule.observe(_numbers(2, 10))
    torch.testing.assert_close(rule.weights(BASE), _numbers(1 / 2, 2 / 10))
    rule.observe(_numbers(4, 5))
    torch.testing.assert_close(rule.weights(BASE), _numbers(1 / (0.9 * 2 + 0.1 * 4), 2 / (0.9 * 10 + 0.1 * 5)))


def test_normalized_learns_nothing_from_a_step_in_which_a_term_had_no_rows():
    rule = _rule("normalized", decay=0.5)
    rule.observe(_numbers(2, 0))
    assert rule.weights(BASE).tolist() == [0.5, 2]
    rule.observe(_numbers(2, 4))
    assert rule.weights(BASE).tolist() == [0.5, 0.5]
    rule.observe(_numbers(2, 0))
    assert rule.weights(BASE).tolist() == [0.5, 0.5]


def test_normalized_takes_the_size_of_a_loss_that_crosses_zero():
    rule = _rule("normalized", decay=0.5)
    rule.observe(_numbers(1, 3))
    rule.observe(_numbers(1, -3))
    torch.testing.assert_close(rule.weights(BASE), _numbers(1, 2 / 3))


# uncertainty


def _uncertainty(*s: float) -> CombineRule:
    rule = COMBINES["uncertainty"](SPECS["uncertainty"].model_validate({"type": "uncertainty"}), [True, False])
    with torch.no_grad():
        next(rule.parameters()).copy_(_numbers(*s))
    return rule


def _penalty(rule: CombineRule) -> Tensor:
    penalty = rule.penalty()
    assert penalty is not None
    return penalty


def test_uncertainty_is_kendalls_sum_and_gradient():
    rule, losses, s = _uncertainty(0.4, -0.6), _numbers(3, 0.2), _numbers(0.4, -0.6)
    base, factors = BASE, _numbers(0.5, 1)
    total = (rule.weights(base) * losses).sum() + _penalty(rule)
    torch.testing.assert_close(total, (base * (factors * torch.exp(-s) * losses + s / 2)).sum())
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(next(rule.parameters()).grad, base * (0.5 - factors * torch.exp(-s) * losses))


def test_uncertainty_is_least_where_the_variance_is_that_of_the_loss():
    """Of a class term: e^s = 2L."""
    rule = _uncertainty(0.0, float(torch.tensor(2 * 0.3).log()))
    ((rule.weights(BASE) * _numbers(3, 0.3)).sum() + _penalty(rule)).backward()  # type: ignore[no-untyped-call]
    gradient = next(rule.parameters()).grad
    assert gradient is not None
    assert float(gradient[1]) == pytest.approx(0, abs=1e-6)


def test_uncertainty_does_not_depend_on_how_a_step_is_cut():
    shares = torch.rand(6, 2, dtype=torch.float64)
    gradients = []
    for cuts in ([6], [1, 2, 3], [1] * 6):
        rule = _uncertainty(0.4, -0.6)
        for part in shares.split(cuts):
            (rule.weights(BASE) * part.sum(0)).sum().backward()  # type: ignore[no-untyped-call]
        _penalty(rule).backward()  # type: ignore[no-untyped-call]
        gradients.append(next(rule.parameters()).grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_uncertainty_stays_within_its_bounds_and_can_come_back():
    rule = _uncertainty(9.0, -9.0)
    torch.testing.assert_close(rule.weights(_numbers(1, 1)), _numbers(0.5, 1) * torch.exp(_numbers(-5, 5)))
    ((rule.weights(_numbers(1, 1)) * _numbers(1, 1)).sum() + _penalty(rule)).backward()  # type: ignore[no-untyped-call]
    s = next(rule.parameters())
    assert s.grad is not None
    assert s.grad[0] > 0 > s.grad[1]  # a descent leads both inwards
    rule.observe(_numbers(1, 1))
    assert s.tolist() == [5, -5]


def test_a_term_that_a_schedule_holds_at_zero_does_not_move_its_variance():
    rule = _uncertainty(0.0, 0.0)
    ((rule.weights(_numbers(1, 0)) * _numbers(3, 3)).sum() + _penalty(rule)).backward()  # type: ignore[no-untyped-call]
    gradient = next(rule.parameters()).grad
    assert gradient is not None
    assert gradient[0] != 0
    assert gradient[1] == 0


# dwa


def test_dwa_over_three_epochs_by_hand():
    rule = _rule("dwa", temperature=2.0)
    epochs = [[(4.0, 1.0), (2.0, 3.0)], [(1.0, 2.0)], [(0.5, 1.0), (0.5, 3.0)]]  # means (3, 2), (1, 2), (0.5, 2)
    seen = []
    for steps in epochs:
        seen.append(rule.weights(BASE))
        for losses in steps:
            rule.observe(_numbers(*losses))
        rule.end_epoch()
    assert seen[0].tolist() == seen[1].tolist() == [1, 2]  # nothing to compare yet
    third, fourth = _numbers(1 / 3, 1), _numbers(0.5, 1)
    torch.testing.assert_close(seen[2], BASE * 2 * torch.softmax(third / 2, -1))
    torch.testing.assert_close(rule.weights(BASE), BASE * 2 * torch.softmax(fourth / 2, -1))
    assert rule.weights(_numbers(1, 1))[1] > 1 > rule.weights(_numbers(1, 1))[0]  # the slower one counts more


def test_dwa_takes_an_epoch_without_a_step_for_none():
    rule = _rule("dwa")
    for losses in ((3.0, 2.0), (1.0, 2.0)):
        rule.observe(_numbers(*losses))
        rule.end_epoch()
    before = rule.weights(BASE)
    rule.end_epoch()
    assert torch.equal(rule.weights(BASE), before)


def test_dwa_stays_finite_where_a_term_never_had_a_row():
    rule = _rule("dwa")
    for _ in range(3):
        rule.observe(_numbers(1, 0))
        rule.end_epoch()
    torch.testing.assert_close(rule.weights(BASE), BASE)


# gradnorm


def _merge(rule: CombineRule, gradients: list[list[Tensor]], losses: Tensor, base: Tensor) -> list[Tensor]:
    return rule.merge(gradients, rule.weights(base).detach(), losses)


def test_gradnorm_moves_towards_equal_norms_and_keeps_the_sum():
    rule, gradients = _rule("gradnorm", alpha=0.0), [[_numbers(3, 0)], [_numbers(0, 1)]]
    ones = _numbers(1, 1)
    gaps = []
    for _ in range(100):
        weights = rule.weights(ones)
        assert float(weights.sum()) == pytest.approx(2)
        gaps.append(abs(float(weights[0]) * 3 - float(weights[1])))
        _merge(rule, gradients, ones, ones)
    assert gaps[20] < gaps[0] / 2
    assert max(gaps[-10:]) < 0.3
    torch.testing.assert_close(rule.weights(ones), _numbers(0.5, 1.5), atol=0.1, rtol=0)


def test_gradnorms_first_step_by_hand():
    rule = _rule("gradnorm", alpha=1.5, learning_rate=0.1)
    merged = _merge(rule, [[_numbers(3, 0)], [_numbers(0, 1)]], _numbers(2, 5), _numbers(1, 1))
    torch.testing.assert_close(merged, [_numbers(3, 1)])
    # Norms 3 and 1, mean 2: slopes 3 and −1, over their mean 2, times 0.1; then the sum is made 2 again.
    moved = _numbers(1 - 0.15, 1 + 0.05)
    torch.testing.assert_close(rule.weights(_numbers(1, 1)), moved * 2 / moved.sum())


def test_gradnorm_lets_a_slower_term_learn_faster():
    rule, gradients, ones = _rule("gradnorm", alpha=1.5), [[_numbers(1, 0)], [_numbers(0, 1)]], _numbers(1, 1)
    _merge(rule, gradients, ones, ones)
    for _ in range(5):
        _merge(rule, gradients, _numbers(0.2, 0.9), ones)
    learned = rule.weights(ones)
    assert learned[1] > 1 > learned[0]


def test_a_term_that_a_schedule_holds_at_zero_takes_no_weight_from_the_others():
    rule, base = _rule("gradnorm", terms=3), _numbers(1, 1, 0)
    gradients = [[_numbers(3, 0)], [_numbers(0, 1)], [_numbers(1, 1)]]
    for _ in range(50):
        _merge(rule, gradients, _numbers(1, 1, 1), base)
    learned = rule.weights(_numbers(1, 1, 1))
    assert float(learned[2]) == pytest.approx(1)
    assert float(learned.sum()) == pytest.approx(3)


def test_gradnorm_waits_for_a_term_that_had_no_rows_yet():
    rule, ones = _rule("gradnorm"), _numbers(1, 1)
    _merge(rule, [[_numbers(3, 0)], [_numbers(0, 0)]], _numbers(1, 0), ones)
    assert torch.equal(rule.weights(ones), ones)
    _merge(rule, [[_numbers(1, 0)], [_numbers(0, 1)]], _numbers(1, 7), ones)
    torch.testing.assert_close(rule.weights(ones), ones)


def test_gradnorm_learns_nothing_of_a_term_whose_gradient_overflowed():
    rule, ones = _rule("gradnorm", 3), _numbers(1, 1, 1)
    overflowed = [[_numbers(1, 0)], [_numbers(float("inf"), 0)], [_numbers(float("nan"), 0)]]
    merged = _merge(rule, overflowed, ones, ones)
    assert torch.equal(rule.weights(ones), ones)
    assert not merged[0].isfinite().all()  # what skips the step


# pcgrad


def test_pcgrad_takes_the_conflict_out():
    one, other = [_numbers(1, 0), _numbers(0)], [_numbers(-1, 1), _numbers(1)]
    (first, second) = _merge(_rule("pcgrad"), [one, other], _numbers(1, 1), _numbers(1, 1))
    # g₁·g₂ = −1: g₁ + ⅓ g₂ = (2/3, 1/3, 1/3), g₂ + g₁ = (0, 1, 1).
    torch.testing.assert_close(first, _numbers(2 / 3, 4 / 3))
    torch.testing.assert_close(second, _numbers(4 / 3))


def test_pcgrad_leaves_no_conflict_with_either_of_two():
    for _ in range(20):
        a, b = torch.randn(2, 6, dtype=torch.float64)
        (merged,) = _merge(_rule("pcgrad"), [[a], [b]], _numbers(1, 1), _numbers(1, 1))
        assert merged @ a >= -1e-12
        assert merged @ b >= -1e-12


@pytest.mark.parametrize("other", [(0.0, 2.0), (1.0, 5.0)])
def test_pcgrad_leaves_gradients_alone_that_do_not_conflict(other: tuple[float, float]):
    gradients = [[_numbers(3, 0)], [_numbers(*other)]]
    (merged,) = _merge(_rule("pcgrad"), gradients, _numbers(1, 1), BASE)
    torch.testing.assert_close(merged, _numbers(3, 0) + 2 * _numbers(*other))


def test_pcgrad_survives_a_term_without_a_gradient():
    (merged,) = _merge(_rule("pcgrad"), [[_numbers(3, 0)], [_numbers(0, 0)]], _numbers(1, 0), BASE)
    torch.testing.assert_close(merged, _numbers(3, 0))


# rlw


def test_rlw_draws_anew_each_step_and_repeats_itself_by_the_seed():
    def draw() -> list[Tensor]:
        torch.manual_seed(3)
        rule, drawn = _rule("rlw", terms=3), []
        for _ in range(4):
            drawn.append(rule.weights(torch.ones(3, dtype=torch.float64)))
            rule.observe(torch.ones(3, dtype=torch.float64))
        return drawn

    one, two = draw(), draw()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], one[1])
    assert all(float(weights.sum()) == pytest.approx(3) for weights in one)


def test_rlw_is_the_softmax_of_a_normal():
    torch.manual_seed(3)
    drawn = torch.randn(2, dtype=torch.float64)
    torch.manual_seed(3)
    torch.testing.assert_close(_rule("rlw").weights(BASE), BASE * 2 * torch.softmax(drawn, -1))


def test_only_uncertainty_has_something_to_learn():
    assert [kind for kind in COMBINES if list(_rule(kind).parameters())] == ["uncertainty"]
    assert isinstance(_rule("uncertainty"), nn.Module)


def test_one_term_has_nothing_to_balance():
    with pytest.raises(ValueError, match="'dwa' balances terms and needs two or more; there is 1"):
        Composition.model_validate({"terms": [{"loss": "mse"}], "combine": "dwa"})
