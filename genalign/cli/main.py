"""The command line: arguments, exit codes, and a failure as one sentence. What each verb does is in verbs.py."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from genalign.allocator import keep_freed_memory
from genalign.cli import verbs

PLAIN = "\0"  # no argument of a process can hold it
SEARCHES = ("best-of-n", "random", "reno", "fk", "majority-vote", "self-certainty", "vas")


def _path(text: str) -> Path:
    return Path(text).expanduser()


class _ArgumentError(Exception):
    """A command line that argparse refuses: one sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _ArgumentError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0, 1 (run error, or nothing was scored), 2 (usage error), 130 (Ctrl-C) or 143 (SIGTERM)."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):  # the bars of libraries; ours are asked for by name
        os.environ.setdefault(name, "1")
    keep_freed_memory()
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries will change does not concern a user
    try:
        args = parse(words)
        code: int | None = args.verb(args)
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        print("interrupted; what was written stays, and --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a reader such as head has left
        return 0
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        sentence, code = explain(error)
        print(f"genalign: {sentence}", file=sys.stderr)
        return code


def explain(error: Exception) -> tuple[str, int]:
    """One sentence about an error, and the exit code: 2 usage, 1 run, 143 a run that was ended by SIGTERM."""
    if isinstance(error, _ArgumentError):
        return str(error), 2
    types = sys.modules.get("genalign.types")  # an error of ours can only come from code that imported it
    if types is not None and isinstance(error, types.GenalignError):
        return " ".join(str(error).split()), error.code
    if type(error).__name__ == "OutOfMemoryError":
        return "the device's memory is not enough; lower policy.batch_size, or see what would fit by --plan --card", 1
    first = next(iter(str(error).splitlines()), "").strip().rstrip(".")
    return f"{type(error).__name__}{f': {first}' if first else ''}; run again with --debug for the traceback", 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Arguments of one verb. Overrides may stand anywhere behind the recipe, also behind options."""
    if "--" in words:  # what stands behind is no option, whatever it begins with
        at = list(words).index("--")
        words = [*words[:at], *(f"{PLAIN}{word}" for word in words[at + 1 :])]
    args, rest = _parser().parse_known_args(words)
    for name, value in vars(args).items():
        if isinstance(value, str):
            setattr(args, name, value.removeprefix(PLAIN))
    rest = [word for word in rest if word != "--"]
    if rest and getattr(args, "prompt", "") is None and args.prompts is None:
        args.prompt = rest.pop(0).removeprefix(PLAIN)  # behind the options, where argparse had given it up
    stray = [word for word in rest if word.startswith("-") or "overrides" not in args]
    if stray:
        raise _ArgumentError(f"genalign {words[0]} knows no argument {stray[0]!r}; see genalign {words[0]} --help")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="genalign", description="Align generative models with rewards.", allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    debug = _Parser(add_help=False)
    debug.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="print the traceback of an error"
    )
    subparsers = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text, parents=[debug], allow_abbrev=False)
        sub.set_defaults(verb=run)
        return sub

    sub = verb("ls", verbs.ls, "list what genalign ships")
    sub.add_argument("kind", nargs="?", choices=verbs.KINDS, help="one kind only")

    sub = verb("cp", verbs.cp, "copy a shipped recipe, reward or model, to be edited")
    sub.add_argument("name", metavar="NAME", help="as `genalign ls` prints it")
    sub.add_argument("dest", metavar="DEST", type=_path, help="folder or file name")

    sub = verb("train", verbs.train, "run a recipe")
    sub.add_argument("recipe", metavar="RECIPE", help="a .yaml file, or a name from `genalign ls recipes`")
    sub.add_argument("overrides", metavar="a.b=c", nargs="*", default=[], help="replace one value of the recipe")
    sub.add_argument("--plan", action="store_true", help="print what would be done and what it costs, and stop")
    sub.add_argument("--card", metavar="24GB", help="with --plan: memory alone, and what makes it fit such a card")
    sub.add_argument("--resume", metavar="RUN", help="go on with this run folder, or `latest`")
    sub.add_argument("--out", type=_path, metavar="DIR", help="run folder (default: runs/RECIPE-DATE-TIME)")

    sub = verb("sample", verbs.sample, "draw samples from a model or a run")
    sub.add_argument("source", metavar="MODEL|RUN", help="a run or recipe, a model folder, a shipped model or a hub id")
    sub.add_argument("prompt", metavar="PROMPT", nargs="?")
    sub.add_argument("overrides", metavar="a.b=c", nargs="*", default=[], help="replace one value of a recipe")
    sub.add_argument("--prompts", type=_path, metavar="FILE", help="a .jsonl or .txt file of prompts")
    sub.add_argument("--seed", type=int, default=0, help="seed of a prompt's first sample; the next has the next")
    sub.add_argument("--n", type=int, default=1, help="samples per prompt")
    sub.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's)")
    sub.add_argument("--steps", type=int, help="denoising steps (default: the recipe's)")
    sub.add_argument("--base", action="store_true", help="with the adapter of the run switched off")
    sub.add_argument("--rollout", action="store_true", help="the base as training samples it, stored to be labelled")
    sub.add_argument("--search", nargs="+", default=[], choices=SEARCHES, help="search for better samples, and compare")
    sub.add_argument("--reward", nargs="+", default=[], metavar="R[=WEIGHT]", help="what to search for")
    sub.add_argument("--budget", type=float, metavar="N", help="what each sample may cost, in plain samplings")
    sub.add_argument("--out", type=_path, required=True, metavar="DIR")

    sub = verb("score", verbs.score, "score files with a reward")
    sub.add_argument("reward", metavar="REWARD", help="a reward file, file.py:function, or a shipped reward")
    sub.add_argument(
        "--media", nargs="+", type=_path, required=True, metavar="FILE", help="pictures, videos, sounds, or .txt files"
    )
    sub.add_argument("--prompt", nargs="+", default=[], help="one for all files, or one each")
    sub.add_argument("--prompts", type=_path, metavar="FILE", help="a .jsonl with prompt and facts of each file")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")

    sub = verb("eval", verbs.evaluate, "measure a run before against after")
    sub.add_argument("run", metavar="RUN", type=_path)
    sub.add_argument("--reward", nargs="+", default=[], metavar="R", help="further rewards to measure")
    sub.add_argument(
        "--suite",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="by these prompts; geneval2=, unigenbench=: see docs",
    )
    sub.add_argument("--judge", nargs="+", default=[], metavar="R", help="with --suite: what scores it")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")

    sub = verb(
        "fit-reward", verbs.fit_reward, "fit a reward to preferences, or one that reads noisy latents (method nrg)"
    )
    sub.add_argument("recipe", metavar="RECIPE", help="a .yaml file, or a name from `genalign ls recipes`")
    sub.add_argument("overrides", metavar="a.b=c", nargs="*", default=[], help="replace one value of the recipe")
    sub.add_argument("--out", type=_path, metavar="DIR", help="default: runs/fit-RECIPE; a killed fit goes on there")

    sub = verb("serve-reward", verbs.serve_reward, "serve a reward over HTTP, to be used as `use: http://host:port`")
    sub.add_argument("reward", metavar="REWARD", help="a reward file, file.py:function, or a shipped reward")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    sub.add_argument("--port", type=int, default=8000)
    sub.add_argument("--token-env", metavar="NAME", help="environment variable with the bearer token to ask for")
    sub.add_argument("--max-body", metavar="MIB", type=int, default=256, help="largest request (default: 256)")
    sub.add_argument("--device", default="cpu", help="where media are scored (default: cpu)")

    sub = verb("eval-reward", verbs.eval_reward, "measure a reward against judged samples")
    sub.add_argument("reward", metavar="REWARD", help="a reward file or folder, file.py:function, or a shipped reward")
    sub.add_argument(
        "--data", type=_path, required=True, metavar="FILE", help="judged samples, as public sets have them"
    )
    sub.add_argument("--against", metavar="R", help="another reward: its distance, and what it thinks of the best of n")
    sub.add_argument("--batch-size", type=int, default=64, metavar="N", help="samples at a time (default: 64)")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")

    sub = verb("demo", verbs.demo, "a page to draw, vote and align from votes (pip install 'genalign[demo]')")
    sub.add_argument("recipe", metavar="RECIPE|RUN", nargs="?", default="image-d3po", help="default: image-d3po")
    sub.add_argument("overrides", metavar="a.b=c", nargs="*", default=[], help="replace one value of the recipe")
    sub.add_argument("--runs", type=_path, metavar="DIR", default=Path("runs"), help="runs to show (default: runs)")
    sub.add_argument("--votes", type=_path, metavar="DIR", default=Path("votes"), help="default: votes")
    sub.add_argument("--pictures", type=_path, metavar="DIR", help="vote on these as well, drawn by A1111 or ComfyUI")
    sub.add_argument(
        "--disputed", action="store_true", help="ask about the pairs that rewards fitted to the votes dispute"
    )
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    sub.add_argument("--port", type=int, default=7860)
    sub.add_argument("--share", action="store_true", help="a public address by Gradio's servers; needs --auth")
    sub.add_argument("--auth", type=_path, metavar="FILE", help="ask for a name and a password of this file")
    sub.add_argument("--add-user", metavar="NAME", help="ask for a password, write its hash to --auth FILE, and stop")

    verb("doctor", verbs.doctor, "say what this installation can do")

    sub = verb("export", verbs.export, "write a run's adapter for other tools")
    sub.add_argument("run", metavar="RUN", type=_path)
    sub.add_argument("--to", choices=("diffusers", "comfyui"), required=True)
    sub.add_argument("--out", type=_path, metavar="DEST", help="default: RUN/export-TO")

    sub = verb("lab", verbs.lab, "build the tiny models and data in assets/")
    sub.add_argument("action", choices=("build",))
    sub.add_argument("name", metavar="NAME", help="as `genalign ls models` prints it, or a part of the worlds")
    sub.add_argument("--out", type=_path, metavar="DIR", help="default: its folder in assets/")
    sub.add_argument("--work", type=_path, metavar="DIR", help="checkpoints of the training (default: runs/lab)")
    sub.add_argument("--font", type=_path, metavar="FILE", help="of sprites (.ttf) or melody-bank (.sf2)")
    return parser
