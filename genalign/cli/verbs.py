"""What each verb of the command line does with its arguments; everything heavy is imported inside the verb."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

KINDS = ("recipes", "rewards", "methods", "models")


def ls(args: argparse.Namespace) -> None:
    for kind in [args.kind] if args.kind else KINDS:
        if args.kind is None:
            print(kind)
        for name, what in _shipped(kind):
            print(f"{'' if args.kind else '  '}{name:<28} {what}".rstrip())


def _shipped(kind: str) -> list[tuple[str, str]]:
    from genalign.files.shipped import shipped, shipped_models

    if kind == "methods":
        from genalign.method import PRESETS

        return [(name, _settings(preset)) for name, preset in PRESETS.items()]
    if kind == "models":
        return [(name, _size(shipped("assets", name))) for name in shipped_models()]
    room = shipped("pipelines" if kind == "recipes" else "rewards")
    files = sorted(path for path in room.iterdir() if path.suffix in (".yaml", ".py"))
    return [(path.stem if kind == "recipes" else path.name, _first_comment(path)) for path in files]


def _settings(preset: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in preset.items())


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 2**20:.1f} MiB"


def _first_comment(path: Path) -> str:
    line = path.read_text(encoding="utf-8").lstrip().partition("\n")[0]
    return line.strip('#" ').strip()


def cp(args: argparse.Namespace) -> None:
    from genalign.files.shipped import shipped
    from genalign.types import UsageError, nearest

    known: dict[str, str] = {}
    for kind, room in (("recipes", "pipelines"), ("rewards", "rewards"), ("models", "assets")):
        known |= {name: room for name, _ in _shipped(kind)}
    if args.name not in known:
        raise UsageError(f"genalign ships nothing called {args.name!r}{nearest(args.name, known)}")
    room = known[args.name]
    source = shipped(room, f"{args.name}.yaml" if room == "pipelines" else args.name)
    target = args.dest / source.name if args.dest.is_dir() else args.dest
    if target.exists():
        raise UsageError(f"{target} exists already; choose another DEST")
    try:
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}; choose another DEST") from error
    print(target)


def train(args: argparse.Namespace) -> None:
    from genalign.run.launch import train_recipe

    train_recipe(args.recipe, args.overrides, args.out, args.resume, args.plan, args.card)


def sample(args: argparse.Namespace) -> None:
    from genalign.cli.sample_files import sample_files
    from genalign.types import UsageError

    if (args.prompt is None) == (args.prompts is None):
        raise UsageError("give genalign sample either a PROMPT or --prompts FILE")
    sample_files(
        args.source,
        args.prompts or args.prompt,
        args.out,
        overrides=args.overrides,
        n=args.n,
        seed=args.seed,
        guidance=args.guidance,
        steps=args.steps,
        base=args.base,
        rollout=args.rollout,
        searches=args.search,
        rewards=args.reward,
        budget=args.budget,
    )


def score(args: argparse.Namespace) -> int:
    from genalign.cli.score import print_scores
    from genalign.cli.score import score as score_media
    from genalign.types import UsageError

    if args.prompt and args.prompts:
        raise UsageError("give genalign score either --prompt or --prompts FILE")
    return print_scores(score_media(args.reward, args.media, args.prompts or args.prompt), args.json)


def evaluate(args: argparse.Namespace) -> None:
    from genalign.cli.evaluate import evaluate_run, evaluate_suites, print_evaluation, print_suites
    from genalign.types import UsageError

    if args.suite:
        print_suites(evaluate_suites(args.run, args.suite, args.judge, args.reward), args.json)
        return
    if args.judge:
        raise UsageError(
            "--judge scores the prompts of --suite; further rewards of the recipe's own prompts are --reward"
        )
    print_evaluation(evaluate_run(args.run, args.reward), args.run, args.json)


def fit_reward(args: argparse.Namespace) -> None:
    from genalign.cli.fit_reward import fit_folder, print_fit
    from genalign.cli.fit_reward import fit_reward as fit

    out = fit_folder(args.recipe, args.out)
    print_fit(fit(args.recipe, args.overrides, out), args.recipe, out)


def serve_reward(args: argparse.Namespace) -> None:
    from genalign.reward import build_reward
    from genalign.reward.runtime.serving import serve
    from genalign.types import UsageError

    token = os.environ.get(args.token_env) if args.token_env else None
    if args.token_env and not token:
        raise UsageError(f"the environment variable {args.token_env} is not set; export the token")
    if not 0 <= args.port < 1 << 16:
        raise UsageError(f"--port is {args.port}; it must lie in 0..65535")
    reward = build_reward(args.reward, Path())
    print(f"serving {reward.name} ({', '.join(reward.aspects)}) at http://{args.host}:{args.port}", flush=True)
    serve(reward, args.host, args.port, token=token, max_body=args.max_body << 20, device=args.device)


def eval_reward(args: argparse.Namespace) -> int:
    from genalign.cli.eval_reward import evaluate_file

    return evaluate_file(args.reward, args.data, args.against, args.batch_size, args.json)


def demo(args: argparse.Namespace) -> None:
    from genalign.demo.serve import ask_password, serve
    from genalign.types import UsageError

    if args.add_user is not None:
        if args.auth is None:
            raise UsageError("--add-user needs the file to write to; add --auth FILE")
        ask_password(args.auth, args.add_user)
        return
    serve(
        args.recipe,
        args.overrides,
        runs=args.runs,
        votes=args.votes,
        host=args.host,
        port=args.port,
        share=args.share,
        auth=args.auth,
        disputed=args.disputed,
        pictures=args.pictures,
    )


def doctor(args: argparse.Namespace) -> int:
    from genalign.cli.doctor import main as examine

    return examine()


def export(args: argparse.Namespace) -> None:
    from genalign.cli.export import export as write

    print(write(args.run, args.to, args.out or args.run / f"export-{args.to}"))


def lab(args: argparse.Namespace) -> None:
    if args.name == "base-rows":
        from genalign.cli.base_rows import build_base_rows

        build_base_rows(args.out)
        return
    from genalign.lab.build import main as build

    build(args.name, out=args.out, work=args.work, font=args.font)
