"""Features: rows, measures of them by name, a count of operations, two ranks in one process, exemplars in a folder."""

import threading
from pathlib import Path

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from genalign.reward.sets.frechet import Frechet, Moments
from genalign.reward.sets.kernel import Coverage, KernelDistance
from genalign.reward.sets.neighbours import Precision, Recall
from genalign.reward.sets.vendi import Vendi
from tests.helpers.toy_rewards import images, tiny_clip


def rows(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    """Gaussian rows with a decaying spectrum, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    return drawn * torch.linspace(1.5, 0.05, dims, dtype=torch.float64) + 0.2


def measure(name: str, exemplars: torch.Tensor):
    return {
        "frechet": lambda: Frechet(Moments.of(exemplars)),
        "kernel": lambda: KernelDistance(exemplars),
        "coverage": lambda: Coverage(exemplars),
        "precision": lambda: Precision(exemplars),
        "recall": lambda: Recall(exemplars),
        "vendi-1": lambda: Vendi(1),
        "vendi-2": lambda: Vendi(2),
    }[name]()


class Operations(TorchDispatchMode):
    """Counts additions and products; of decompositions as Golub and Van Loan (2013) do: R-SVD 8.6, eigh 8.3."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.decompositions = 0.0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        out = func(*args, **(kwargs or {}))
        if name in ("mm", "mv"):
            self.total += 2 * args[0].numel() * (args[1].shape[1] if name == "mm" else 1)
        elif name in ("_linalg_svd", "_linalg_eigh"):
            m, n = max(args[0].shape), min(args[0].shape)
            vectors = (kwargs or {}).get("compute_uv", True)
            thin = 6 * m * n**2 + 20 * n**3 if vectors else 2 * m * n**2 + 2 * n**3
            self.total += 9 * n**3 if name == "_linalg_eigh" else thin
            self.decompositions += 1
        else:
            assert "linalg" not in name, f"{name} is not counted"
            self.total += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


def exemplar_room(folder: Path) -> Path:
    """A folder with a tiny CLIP and exemplars in every form: pictures, texts, functions."""
    tiny_clip(folder / "clip")
    (folder / "shown").mkdir()
    for k, picture in enumerate(images(40, seed=5)["image"].data):
        levels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(levels).save(folder / "shown" / f"{k:02}.png")
    (folder / "said.txt").write_text("\n".join(f"prompt number {k}" for k in range(12)))
    (folder / "made.py").write_text(
        "import torch\n"
        "def shown():\n    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))\n"
        "def both():\n    return shown(), [f'prompt {k}' for k in range(8)]\n"
        "def wrong():\n    return torch.zeros(3)\n"
    )
    return folder


def on_two_ranks(monkeypatch, module: str, task) -> list:
    """task(rank) on two threads whose gather meets at a barrier, as two processes would."""
    barrier, mail, local = threading.Barrier(2, timeout=120), {}, threading.local()

    def fake_gather(tensor):
        mail[local.rank] = tensor
        barrier.wait()
        both = torch.cat([mail[0], mail[1]])
        barrier.wait()
        return both

    def run(rank: int) -> None:
        local.rank = rank
        try:
            results[rank] = task(rank)
        except ValueError as error:
            results[rank] = error

    results: list = [None, None]
    monkeypatch.setattr(f"{module}.gather", fake_gather)
    monkeypatch.setattr(f"{module}.rank", lambda: local.rank, raising=False)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
