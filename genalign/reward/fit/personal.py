"""Rewards that know whose taste they serve: ideal points (PAL), a latent user (VPL), a mixture with a router (MiCRo).

Each is a head like those of heads.py, with two methods more: `loss` of pairs (N,H) whose users are known, and `settle`,
which after training stores each user's own parameters. A stranger, -1, gets what the paper gives to an unknown user.
`adapt` takes a new user's pairs, a (n,H) preferred to b (n,H), and leaves everything else as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.reward.fit.heads import Trunk
from genalign.reward.fit.losses import bradley_terry, hedge, mixture, normal_kl


class _Personal(nn.Module):
    pairwise = False
    temperature = 0.5  # of Hedge: how fast its weights concentrate

    def score(self, rows: Tensor, users: Tensor) -> Tensor:
        raise NotImplementedError

    def compare(self, a: Tensor, b: Tensor, users: Tensor) -> Tensor:
        return self.score(a, users) - self.score(b, users)

    @staticmethod
    def _of(table: Tensor, users: Tensor, stranger: Tensor) -> Tensor:
        """The rows of `table` that belong to users (N,), `stranger` for -1."""
        return torch.cat([table, stranger[None]])[users]


class IdealPoints(_Personal):
    """score = -e^s |f(x) - u|, u = sum_k softmax(w_user)_k point_k over K shared points (PAL, arXiv 2406.08469, A).

    A stranger's weights are the mean of the known users'.
    """

    def __init__(self, features: int, users: int, points: int = 2, dims: int = 16, width: int | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(features, dims, width, bias=False)
        self.points = nn.Parameter(torch.randn(points, dims))
        self.mind = nn.Parameter(0.1 * torch.randn(users, points))
        self.sharpness = nn.Parameter(torch.zeros(()))

    @property
    def weights(self) -> Tensor:
        """(users, K): each user's share of each point."""
        return self.mind.softmax(1)

    def score(self, rows: Tensor, users: Tensor) -> Tensor:
        shares = self._of(self.weights, users, self.weights.mean(0))
        return -self.sharpness.exp() * (self.trunk(rows) - shares @ self.points).norm(dim=1)

    def loss(self, a: Tensor, b: Tensor, p: Tensor, users: Tensor) -> Tensor:
        return bradley_terry(self.compare(a, b, users), p)

    def settle(self, a: Tensor, b: Tensor, p: Tensor, users: Tensor) -> None:
        """Nothing: the weights were learnt."""

    def adapt(self, a: Tensor, b: Tensor, steps: int = 100, rate: float = 0.1) -> Tensor:
        """(K,) weights of a new user: only they are fitted."""
        with torch.no_grad():
            at_a, at_b, points, scale = self.trunk(a), self.trunk(b), self.points.clone(), self.sharpness.exp()
        mind = torch.zeros(len(points), requires_grad=True)
        optimizer = torch.optim.Adam([mind], lr=rate)
        for _ in range(steps):
            ideal = mind.softmax(0) @ points
            delta = scale * ((at_b - ideal).norm(dim=1) - (at_a - ideal).norm(dim=1))
            optimizer.zero_grad()
            bradley_terry(delta, torch.ones_like(delta)).mean().backward()
            optimizer.step()
        return mind.detach().softmax(0)


class Mixture(_Personal):
    """score = sum_k w_k r_k(x): K rewards, and how much each counts (MiCRo, arXiv 2505.24846).

    Of a known user, w is what Hedge makes of their pairs; a stranger's is the router's, which reads the features (the
    prompt is among them).

    It learns without the users' names, so exactly opposite tastes leave open along which axis they differ: where users
    are known and little is shared, take ideal points.

    Departs from the paper: the router reads both samples' mean while it learns, and the sample itself when it scores.
    """

    def __init__(self, features: int, users: int, rewards: int = 2, width: int | None = None) -> None:
        super().__init__()
        self.trunk, self.router = Trunk(features, rewards, width), Trunk(features, rewards)
        self.known = nn.Buffer(torch.full((users, rewards), 1 / rewards))
        nn.init.zeros_(self.router.layers.weight)  # type: ignore[arg-type]  # one linear layer

    def score(self, rows: Tensor, users: Tensor) -> Tensor:
        routed = self.router(rows).softmax(1)
        shares = torch.where((users < 0)[:, None], routed, self._of(self.known, users, self.known.mean(0)))
        return (shares * self.trunk(rows)).sum(1)

    def compare(self, a: Tensor, b: Tensor, users: Tensor) -> Tensor:
        """(N,) log-odds of the mixture: probabilities are mixed, not rewards."""
        router = self.router((a + b) / 2).log_softmax(1)
        known = self._of(self.known, users, self.known.mean(0)).clamp(min=1e-12).log()
        return self._odds(self.trunk(a) - self.trunk(b), torch.where((users < 0)[:, None], router, known))

    @staticmethod
    def _odds(deltas: Tensor, weights: Tensor) -> Tensor:
        won = torch.logsumexp(weights + F.logsigmoid(deltas), 1)
        lost = torch.logsumexp(weights + F.logsigmoid(-deltas), 1)
        return won - lost

    def loss(self, a: Tensor, b: Tensor, p: Tensor, users: Tensor) -> Tensor:
        return mixture(self.trunk(a) - self.trunk(b), self.router((a + b) / 2).log_softmax(1), p)

    @torch.no_grad()
    def settle(self, a: Tensor, b: Tensor, p: Tensor, users: Tensor) -> None:
        for user in users[users >= 0].unique():
            rows = users == user
            self.known[user] = self._hedge(a[rows], b[rows], p[rows])

    @torch.no_grad()
    def adapt(self, a: Tensor, b: Tensor) -> Tensor:
        """(K,) weights of a new user, by Hedge over their pairs."""
        return self._hedge(a, b, torch.ones(len(a)))

    def _hedge(self, a: Tensor, b: Tensor, p: Tensor) -> Tensor:
        deltas = self.trunk(a) - self.trunk(b)
        return hedge(bradley_terry(deltas, p[:, None]), self.temperature).exp()


class LatentUser(_Personal):
    """score = r(x, z), z read from the user's own pairs by an encoder: variational preference learning.

    (VPL, arXiv 2408.10075.) The encoder maps each pair (preferred, other) to a token, attends over them, and gives
    mean and log-variance, both within [-1,1]; z has length sqrt(d), in training and after it. The loss adds
    `weight` KL(q | N(0, I)), once a user. A stranger has z = 0.

    Departs from the paper's code: z has the same length when the reward is used; there it is the raw mean.
    """

    def __init__(self, features: int, users: int, dims: int = 8, width: int = 64, weight: float = 0.01) -> None:
        super().__init__()
        self.trunk, self.weight = Trunk(features, width), weight
        self.token = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.question = nn.Parameter(torch.randn(width) / width**0.5)
        self.belief = nn.Linear(width, 2 * dims)
        self.taste = nn.Sequential(nn.Linear(width + dims, width), nn.SiLU(), nn.Linear(width, 1))
        self.known = nn.Buffer(torch.zeros(users, dims))

    def posterior(self, a: Tensor, b: Tensor, owner: Tensor, owners: int) -> tuple[Tensor, Tensor]:
        """Means and log-variances (owners,d); owner (n,) says whose pair, a (n,H) preferred to b (n,H), each is."""
        tokens = self.token(torch.cat([self.trunk(a), self.trunk(b)], 1))
        attention = (tokens @ self.question).clamp(-20, 20).exp()  # a softmax within each owner's pairs, below
        empty = tokens.new_zeros(owners)
        total = empty.index_add(0, owner, attention)
        pooled = tokens.new_zeros(owners, tokens.shape[1]).index_add(0, owner, attention[:, None] * tokens)
        mean, logvar = self.belief(pooled / total[:, None]).tanh().chunk(2, 1)
        return mean, logvar

    def _score(self, rows: Tensor, z: Tensor) -> Tensor:
        return self.taste(torch.cat([self.trunk(rows), z], 1))[:, 0]

    def score(self, rows: Tensor, users: Tensor) -> Tensor:
        return self._score(rows, self._of(self.known, users, torch.zeros_like(self.known[0])))

    def loss(self, a: Tensor, b: Tensor, p: Tensor, users: Tensor) -> Tensor:
        names, owner = users.unique(return_inverse=True)
        mean, logvar = self.posterior(*_sorted(a, b, p), owner, len(names))
        z = _to_length(mean + (logvar / 2).exp() * torch.randn_like(mean))[owner]
        kl = self.weight * normal_kl(mean, logvar) / owner.bincount()  # once a user, shared by the user's pairs
        return bradley_terry(self._score(a, z) - self._score(b, z), p) + kl[owner]

    @torch.no_grad()
    def settle(self, a: Tensor, b: Tensor, p: Tensor, users: Tensor) -> None:
        rows = users >= 0
        names, owner = users[rows].unique(return_inverse=True)
        self.known[names] = _to_length(self.posterior(*_sorted(a[rows], b[rows], p[rows]), owner, len(names))[0])

    @torch.no_grad()
    def adapt(self, a: Tensor, b: Tensor) -> Tensor:
        """(d,): the new user's z."""
        return _to_length(self.posterior(a, b, torch.zeros(len(a), dtype=torch.long), 1)[0][0])


def _sorted(a: Tensor, b: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The preferred rows, and the others."""
    first = (p >= 0.5)[:, None]
    return torch.where(first, a, b), torch.where(first, b, a)


def _to_length(z: Tensor) -> Tensor:
    """(...,d) scaled to the length sqrt(d), that of a standard normal vector."""
    return F.normalize(z, dim=-1) * z.shape[-1] ** 0.5
