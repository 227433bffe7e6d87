"""The tab Draw: samples of a base and of a run side by side at equal seeds, texts as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from genalign.cli.sample import Source, sample
from genalign.demo import markup
from genalign.demo.cards import Drawn, cards, score
from genalign.demo.models import BASE, Models
from genalign.demo.works import Work, watched
from genalign.types import Media, Policy, Prompt, Track, UsageError

MOST = 8  # samples of a kind at a time
MOST_STEPS, MOST_GUIDANCE = 1000, 50
SEEDS = 2**32


@runtime_checkable
class Streaming(Protocol):
    """A policy whose samples are texts that can be watched while they are written."""

    def stream(self, prompt: Prompt, seed: int | None, seen: Callable[[str], None], steps: int | None = None) -> Media:
        """One text; `seen` is called with what it is so far. seed: None takes the likeliest tokens."""
        ...


def drawing(
    models: Models,
    work: Work,
    name: str,
    text: str,
    seed: float,
    count: float,
    guidance: float,
    steps: float,
    greedy: bool = False,
) -> Iterator[str]:
    """HTML that grows: the samples one by one, texts token by token; then their scores.

    guidance, steps: 0 for the recipe's own. greedy: texts of the likeliest tokens, and not from their seeds.

    Raises:
        GenalignError: a number that is out of range, or as of `sample`. CancelledError: by the page.
    """
    first, count = checked_seed(seed), checked_whole(count, MOST, "samples are wanted")
    if not 0 <= guidance <= MOST_GUIDANCE:
        raise UsageError(f"the guidance scale is {guidance:g}; it must lie in 0..{MOST_GUIDANCE}")
    own = checked_whole(steps, MOST_STEPS, "steps are wanted") if steps else None
    prompt, found = models.prompt(text), list[Drawn]()
    kinds = [BASE] if name == BASE else [BASE, name]
    with models.drawing(name) as source:
        for k in range(count):
            found.append(Drawn(first + k))
            for kind in kinds:
                growing = _drawn(source, work, prompt, first + k, kind == BASE, guidance or None, own, greedy)
                for media in growing:
                    found[-1].samples[kind] = media
                    done = (k + (len(found[-1].samples) - 1) / len(kinds)) / count
                    yield _progress(done, k, count, work) + cards(found, prompt)
            yield _progress((k + 1) / count, k + 1, count, work) + cards(found, prompt)
    notes = score(models, work, prompt, found)
    yield cards(found, prompt) + "".join(map(markup.note, notes))


def _drawn(
    source: Source,
    work: Work,
    prompt: Prompt,
    seed: int,
    base: bool,
    guidance: float | None,
    steps: int | None,
    greedy: bool,
) -> Iterator[Media]:
    """A sample: a text as it grows, anything else when it is done."""
    work.check()
    policy = source.policy
    if not isinstance(policy, Streaming):
        with work.networks():
            media = next(sample(source, [prompt], seed=seed, guidance=guidance, steps=steps, base=base)).media
        yield media
        return
    if guidance is not None:
        raise UsageError("a language model has no guidance; set it to 0")
    yield from _written(policy, source.tuned and not base, work, prompt, None if greedy else seed, steps)


def _written(
    policy: Policy, tuned: bool, work: Work, prompt: Prompt, seed: int | None, steps: int | None
) -> Iterator[Media]:
    assert isinstance(policy, Streaming)
    so_far, whole = [""], list[Media]()

    def write() -> None:
        with policy.weights("policy" if tuned else "reference"):
            whole.append(policy.stream(prompt, seed, so_far.append, steps))

    shown = ""
    for ended in watched(work, write):
        if not ended and so_far[-1] != shown:
            shown = so_far[-1]
            yield Media(text=Track([shown]))
    yield whole[0]


def _progress(done: float, drawn: int, count: int, work: Work) -> str:
    return markup.progress(done, f"{drawn} of {count}{markup.seconds_left(done, work.spent)}")


def checked_seed(seed: float) -> int:
    """The seed, or the sentence that refuses it."""
    if not 0 <= seed < SEEDS:
        raise UsageError(f"the seed is {seed:g}; it must lie in 0..{SEEDS - 1}")
    return int(seed)


def checked_whole(number: float, most: int, what: str) -> int:
    """The number as it was checked, or the sentence that refuses it."""
    if not 1 <= number <= most:
        raise UsageError(f"{number:g} {what}; ask for 1 to {most}")
    return int(number)
