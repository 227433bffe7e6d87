"""The order in which places are drawn, against loops and enumeration in float64."""

import itertools
import math

import torch

from genalign.policy.unmasking.order import NOWHERE, drawn_places, gumbel, log_order

WEIGHT = torch.tensor([[0.3, -1.0, 0.8, -0.2], [1.5, 0.0, -2.0, 0.4]], dtype=torch.float64)
FREE = torch.tensor([[True, True, True, True], [True, False, True, True]])


def by_hand(weights: list[float], free: list[int], places: tuple[int, ...]) -> float:
    total, left = 0.0, list(free)
    for place in places:
        total += weights[place] - math.log(sum(math.exp(weights[i]) for i in left))
        left.remove(place)
    return total


def test_an_order_has_the_probability_of_one_draw_after_the_other():
    for places in itertools.permutations(range(4), 3):
        found = log_order(WEIGHT[:1], FREE[:1], torch.tensor([places]))
        assert abs(float(found.sum()) - by_hand(WEIGHT[0].tolist(), [0, 1, 2, 3], places)) < 1e-12


def test_the_orders_of_the_free_places_add_up_to_one():
    orders = torch.tensor(list(itertools.permutations([0, 2, 3], 2)))
    rows = len(orders)
    found = log_order(WEIGHT[1:].expand(rows, 4), FREE[1:].expand(rows, 4), orders)
    assert abs(float(found.sum(1).exp().sum()) - 1) < 1e-12


def test_a_row_without_a_place_has_no_density_and_a_gradient_of_zero():
    weight = WEIGHT.clone().requires_grad_()
    places = torch.tensor([[2, 0], [NOWHERE, NOWHERE]])
    found = log_order(weight, FREE & torch.tensor([[True], [False]]), places)
    found.sum().backward()
    assert found[1].tolist() == [0.0, 0.0]
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())
    assert weight.grad[1].tolist() == [0.0] * 4


def test_places_are_drawn_as_often_as_their_density_says():
    rows = 20_000
    noise = gumbel(torch.rand(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    places = drawn_places(WEIGHT[1:] + noise, FREE[1:].expand(rows, 4), 2)
    for order in itertools.permutations([0, 2, 3], 2):
        share = float((places == torch.tensor(order)).all(1).double().mean())
        expected = math.exp(by_hand(WEIGHT[1].tolist(), [0, 2, 3], order))
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / rows)


def test_no_more_places_are_drawn_than_are_free():
    places = drawn_places(WEIGHT, torch.tensor([[True, False, False, False], [False] * 4]), 6)
    assert places.tolist() == [[0] + [NOWHERE] * 5, [NOWHERE] * 6]
