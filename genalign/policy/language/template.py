"""A chat template: conversations as text, and what it writes around an answer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from genalign.policy.settings import PolicySettings
from genalign.types import Prompt, UsageError

OPEN_TAG = re.compile(r"<([A-Za-z][\w:.-]*)>")
OPEN_AT_END = re.compile(rf"(?:{OPEN_TAG.pattern.replace('(', '(?:')}\s*)+\Z")
QUESTION, ANSWER = "qz0", "az0"  # contents of a trial conversation that no template writes itself
TOOL = "tz0"


class Frame(NamedTuple):
    """What a chat template writes around an answer: from the question to it, to its end, and before what follows."""

    header: str | None = None
    closing: str = ""
    following: str = ""


class Template:
    """The template of a tokenizer, or of the processor of a model that sees or hears, where that has one, with the
    recipe's `system` and `template`.

    Raises:
        UsageError: it writes no prompt, or takes no system turn though there is one; template arguments without a
            template, or that are arguments of apply_chat_template.
    """

    def __init__(self, tokenizer: Any, settings: PolicySettings, processor: Any = None) -> None:
        self.settings = settings
        # A processor's template takes lists of parts, a tokenizer's strings.
        self.in_parts = bool(getattr(processor, "chat_template", None))
        self.writer = processor if self.in_parts else tokenizer
        self._check_arguments()
        if self.text:
            self._check_template()

    @property
    def text(self) -> str | None:
        """The template itself; None where there is none."""
        found: str | None = self.writer.chat_template
        return found

    def turns(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The prompt as messages: its fact `messages`, a conversation, or one turn; a system turn of its own stays."""
        given = prompt.facts.get("messages") or [{"role": "user", "content": prompt.text}]
        system = self.settings.system
        own = [{"role": "system", "content": system}] if system and given[0]["role"] != "system" else []
        return own + [dict(turn) for turn in given]

    def apply(self, turns: Sequence[dict[str, Any]], **options: Any) -> Any:
        from jinja2 import TemplateError

        if self.in_parts:
            turns = [{**turn, "content": _in_parts(turn["content"])} for turn in turns]
        try:
            return self.writer.apply_chat_template(turns, **options, **self.settings.template)
        except (TemplateError, TypeError, ValueError) as error:  # the last two of what a template computes
            reason = " ".join(str(error).split())
            if turns[0]["role"] != "system":
                raise UsageError(f"the model's chat template writes no prompt ({reason}); mend the template") from error
            own = self.settings.system is not None
            cure = "remove policy.system, or write its text into the prompts" if own else "begin messages with another"
            raise UsageError(f"the model's chat template takes no system turn ({reason}); {cure}") from error

    def write(self, turns: Sequence[dict[str, Any]], **options: Any) -> str:
        return str(self.apply(turns, tokenize=False, **options))

    def _check_arguments(self) -> None:
        given, parameters = self.settings.template, inspect.signature(self.writer.apply_chat_template).parameters
        if given and not self.text:
            raise UsageError("policy.template is set, but the model's tokenizer has no chat template; remove it")
        own = {"messages", *parameters} - {"tools", "documents"}
        if taken := sorted(own & given.keys()):
            raise UsageError(f"policy.template.{taken[0]} is genalign's own; name variables of the chat template only")

    def _check_template(self) -> None:
        question, system = self.turns(Prompt(QUESTION)), self.settings.system
        alone = self.write(question[-1:], add_generation_prompt=True)
        if QUESTION not in alone:
            raise UsageError("the model's chat template leaves out the text of a user turn; give it one for texts")
        if system and self.write(question, add_generation_prompt=True) == alone and system.strip() not in alone:
            raise UsageError(
                "the model's chat template takes no system turn (it leaves it out); remove policy.system, or write its "
                "text into the prompts"
            )

    def opening(self, turns: Sequence[dict[str, Any]]) -> str:
        """The end of a written prompt from the first tag on that it leaves open for the answer; "" for none."""
        # A prompt may hold any tag or word, so a mark at its end shows where the template goes on.
        marked = {**turns[-1], "content": f"{turns[-1]['content']}\n{QUESTION}"}
        tail = self.write([*turns[:-1], marked], add_generation_prompt=True).rpartition(QUESTION)[2].lstrip()
        header, closing, _ = self.frame
        known = header is not None and tail.startswith(header)
        # An unknown header may hold what looks like a tag, so only tags at the very end count.
        inside = tail.removeprefix(str(header)) if known else _open_at_end(tail)
        for tag in OPEN_TAG.finditer(inside):
            close = f"</{tag[1]}>"
            if close not in inside[tag.end() :] and close not in closing:
                return inside[tag.start() :]
        return ""

    @cached_property
    def frame(self) -> Frame:
        question, answer = self.turns(Prompt(QUESTION)), {"role": "assistant", "content": ANSWER}
        if not self.text:
            return Frame()
        try:
            closing = self.write([*question, answer]).rpartition(ANSWER)[2]
            # An earlier answer: before the last one, some templates write an empty block of thoughts.
            between = self.write([*question, answer, question[-1]]).split(QUESTION)[1]
        except UsageError:  # a template of single questions
            return Frame()
        header, _, following = between.lstrip().partition(ANSWER)
        at_end = _open_at_end(header)
        tag = OPEN_TAG.match(at_end)
        if tag and f"</{tag[1]}>" not in closing:  # it opens a tag of the answer before every answer
            header = header.removesuffix(at_end)
        return Frame(header, closing, following)

    @cached_property
    def tool_frame(self) -> tuple[str, str]:
        """What is written between an answer and the tool's, and behind that: in a turn of the tool, or, where the
        template knows none, of the user. Without a template: a line break each."""
        said = [*self.turns(Prompt(QUESTION)), {"role": "assistant", "content": ANSWER}]
        if not self.text:
            return "\n", "\n"
        for role in ("tool", "user"):
            try:
                written = self.write([*said, {"role": role, "content": TOOL}], add_generation_prompt=True)
            except UsageError:
                continue
            _, answer, rest = written.rpartition(ANSWER)
            before, tool, behind = rest.partition(TOOL)
            if answer and tool:
                return before, behind
        raise UsageError("the model's chat template writes no turn after an answer; remove policy.environment")


def _in_parts(content: Any) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _open_at_end(text: str) -> str:
    found = OPEN_AT_END.search(text)
    return found[0] if found else ""
