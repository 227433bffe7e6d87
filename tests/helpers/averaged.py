"""The toy policy with averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from genalign.types import Weights
from tests.helpers.toy_policy import ToyPolicy


class Averaged(ToyPolicy):
    """The toy with an EMA that is lent by swapping."""

    def __init__(self) -> None:
        super().__init__()
        self.average = self.delta.detach().clone()

    @contextmanager
    def weights(self, which: Weights) -> Iterator[None]:
        swap = which == "ema"
        if swap:
            self.delta.data, self.average = self.average, self.delta.data
        with super().weights("policy" if swap else which):
            yield
        if swap:
            self.delta.data, self.average = self.average, self.delta.data

    def step_ema(self, decay: float) -> None:
        self.average.lerp_(self.delta.detach(), 1 - decay)
