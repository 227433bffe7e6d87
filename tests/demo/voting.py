"""Votes for tests: pictures of one colour, and a process that votes until it is killed."""

import sys
from pathlib import Path

import torch

from genalign.demo.ranking import votes_of
from genalign.demo.votes import Candidate, Vote, Votes
from genalign.types import Media, Track

DIGESTS = {"model": "m" * 64, "sampler": "s" * 64}


def picture(level):
    return Media(image=Track(torch.full((1, 3, 8, 8), level / 255)))


def candidate(votes, level, **known):
    return Candidate(votes.keep(picture(level), 0), seed=1000 + level, **{**DIGESTS, **known})


def vote(votes, choice="left", left=10, right=20, annotator="ada", seconds=1.5, prompt="two red apples", **more):
    return Vote(prompt, candidate(votes, left), candidate(votes, right), choice, annotator, seconds, **more)


def ranking(votes, ranks, levels=(10, 20, 30, 40), annotator="ada", seconds=1.5, prompt="two red apples"):
    """The votes of a ranking of pictures of these levels, not stored; ranks None: skipped."""
    return votes_of(prompt, [candidate(votes, level) for level in levels], ranks, annotator, seconds, {})


def go_on(folder, annotator, count):
    """Vote, and print each vote's number once it is confirmed."""
    votes = Votes(Path(folder))
    sides = Candidate("a.png", 1, "m", "s"), Candidate("b.png", 2, "m", "s")
    for number in range(int(count)):
        votes.add(Vote(f"prompt {number}", *sides, "left", annotator, 0.5))
        print(number, flush=True)


if __name__ == "__main__":
    go_on(*sys.argv[1:])
