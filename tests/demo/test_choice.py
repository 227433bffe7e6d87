"""The choice of the next pair: what is settled comes last; the ensemble's spread is that of its own members."""

import torch

from genalign.demo.choice import FIRST, Disagreement, of_pictures
from genalign.demo.deck import ASKED, BASE_PAIRS, TOGETHER, Deck, Group
from genalign.demo.votes import Candidate, Vote
from genalign.types import Media, Prompt, Track


class Colours:
    """Two features of a picture: how red and how green it is."""

    def features(self, prompts, media):
        return torch.stack([row[:2].mean((1, 2)) for row in media["image"].data])


def candidate(votes, red, green):
    colour = torch.tensor([red, green, 0.0]).div(255)
    return Candidate(votes.keep(Media(image=Track(colour[None, :, None, None].expand(1, 3, 8, 8))), 0))


def test_before_enough_votes_the_order_is_as_drawn(votes):
    rank = Disagreement(votes, Colours())
    pairs = [Group(Prompt("x"), (candidate(votes, level, 0), candidate(votes, level, 9))) for level in (10, 20, 30)]
    assert rank(pairs) == [0, 1, 2]
    assert rank([]) == []


def test_what_the_votes_leave_open_comes_before_what_they_settle(votes):
    """Redder is always better, and green never mattered: the fits agree about red, and each sees something in green."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(FIRST + 10):
        (worse, better), greens = (torch.randint(256, (2,), generator=generator).sort()[0].tolist() for _ in range(2))
        greens = greens if torch.rand(1, generator=generator) < 0.5 else greens[::-1]
        votes.add(
            Vote("x", candidate(votes, better, greens[0]), candidate(votes, worse, greens[1]), "left", "ada", 1.0)
        )
    rank = Disagreement(votes, Colours())
    settled = Group(Prompt("x"), (candidate(votes, 250, 100), candidate(votes, 5, 100)))
    left_open = Group(Prompt("x"), (candidate(votes, 100, 250), candidate(votes, 100, 5)))
    assert rank([settled, left_open]) == [1, 0]
    assert rank([left_open, settled]) == [0, 1]


def test_a_group_is_asked_about_for_all_its_pairs(votes):
    """Of four equal samples nothing can be disputed; of four that differ, something is."""
    rank = Disagreement(votes, Colours())
    for level in range(FIRST):
        votes.add(Vote("x", candidate(votes, 200, level), candidate(votes, 20, 9 * level), "left", "ada", 1.0))
    same = Group(Prompt("x"), (candidate(votes, 100, 100),) * 4)
    unlike = Group(Prompt("x"), tuple(candidate(votes, 100, green) for green in (0, 80, 160, 240)))
    assert rank([same, unlike]) == [1, 0]
    assert rank([unlike, same]) == [0, 1]


def test_a_deck_keeps_the_pairs_that_are_ranked_first(models, votes):
    plain, ranked = (
        Deck(models, votes, seed=5),
        Deck(models, votes, seed=5, rank=lambda pairs: [3, 1, *range(len(pairs))]),
    )
    drawn = [plain.take(BASE_PAIRS) for _ in range(4)]
    assert TOGETHER // 2 // ASKED == 2
    assert [ranked.take(BASE_PAIRS) for _ in range(2)] == [drawn[3], drawn[1]]


def test_pictures_are_ranked_by_how_they_suit_their_prompt(deck, votes):
    rank = of_pictures(votes)
    for k in range(FIRST):
        pair = deck.take(BASE_PAIRS)
        votes.add(Vote(pair.prompt.text, *pair.samples, "left" if k % 2 else "right", "ada", 1.0))
    pairs = [deck.take(BASE_PAIRS) for _ in range(3)]
    assert sorted(rank(pairs)) == [0, 1, 2]
