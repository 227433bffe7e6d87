"""Storages counted by hand."""

import torch

from tests.bench.live import live


def test_each_storage_counts_once_from_its_making_until_it_is_freed() -> None:
    before = torch.zeros(1000)
    kept = []

    def work() -> None:
        a = torch.ones(100)  # 400 bytes
        b = a.view(10, 10)[2:]  # a view
        c = b * 2  # 320 bytes
        del a, b
        before.add_(1)  # in place, and made before
        d = torch.cat([c, c])  # 640 bytes, when a is gone
        kept.append(d)

    assert live(work) == (320 + 640, 640)


def test_what_is_saved_for_the_backward_pass_is_alive_until_then() -> None:
    x = torch.ones(64, requires_grad=True)

    def work() -> None:
        y = x.exp()  # keeps its output, 256 bytes
        z = y.exp().sum()  # 256 bytes more, and 4
        del y
        z.backward()

    peak, held = live(work)
    assert peak >= 3 * 256
    assert held == 256  # the gradient
