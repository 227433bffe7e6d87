"""How prompts become tokens for a language model, and sampled tokens the text that rewards read."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from genalign.policy.language.batch import Encoded
from genalign.policy.language.processor import Reader
from genalign.policy.settings import PolicySettings
from genalign.types import Prompt, UsageError

log = logging.getLogger(__name__)

OPEN_TAG = re.compile(r"<([A-Za-z][\w:.-]*)>")
OPEN_AT_END = re.compile(rf"(?:{OPEN_TAG.pattern.replace('(', '(?:')}\s*)+\Z")
QUESTION, ANSWER = "qz0", "az0"  # contents of a trial conversation that no template writes itself
TOOL = "tz0"


class Frame(NamedTuple):
    """What a chat template writes around an answer: from the question to it, to its end, and before what follows."""

    header: str | None = None
    closing: str = ""
    following: str = ""


class Chat:
    """A tokenizer, its chat template, and the recipe's `system` and `template`.

    A prompt is one user turn, after a system turn if there is one; without a chat template it is plain text. It begins
    with one beginning-of-text token at most.

    The text of a completion keeps all sampled tokens but those that end, begin or pad a text: <think>, <answer> or
    <tool_call> stay, whether the tokenizer calls them special or not. Where the template's generation prompt leaves a
    tag of the answer open, as <think> in those of reasoning models, the text begins with that tag; an open and closed
    block (<think></think>, where thinking is off) is not part of it.

    ends: ids that end a completion. vocabulary: rows of the model's embedding. reader: the processor of a model that
    sees or hears; a prompt's media then stand before the text of its first user turn, or where that text itself writes
    their placeholders.

    A control token in the text of a prompt or of a tool is text: it is split into tokens as other words are (of a model
    that sees or hears, in a tool's alone). Tags that come in pairs, such as <think> and </think>, stay what they are.

    A turn's end that does not end a completion is a warning in the log.

    Raises:
        UsageError: a chat template that writes no prompt, or takes no system turn though there is one; template
            arguments without a template, or that are arguments of apply_chat_template.
    """

    def __init__(
        self, tokenizer: Any, settings: PolicySettings, ends: set[int], vocabulary: int, reader: Reader | None = None
    ) -> None:
        self.tokenizer, self.settings, self.ends, self.vocabulary = tokenizer, settings, ends, vocabulary
        self.reader = reader
        # A processor's template takes lists of parts, a tokenizer's strings.
        self.in_parts = reader is not None and bool(getattr(reader.processor, "chat_template", None))
        self.writer = reader.processor if reader is not None and self.in_parts else tokenizer
        # Of prompts that are too long; each is refused, with its place in a file.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        self._check_arguments()
        if self.writer.chat_template:
            self._check_template()
        self._warn_of_turn_end()
        self.cut = {*ends, *self.turn_end, tokenizer.bos_token_id, tokenizer.pad_token_id} - {None}

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> Encoded:
        """The tokens of a prompt.

        Raises:
            UsageError: it has none, or one that the model has no embedding for.
        """
        opening = ""
        along: Mapping[str, Sequence[int]] = {}
        media: Mapping[str, Any] = {}
        turns = self.turns(prompt)
        if self.reader is not None:
            text = self._with_media(turns, prompt)
            begins = text.startswith(self.tokenizer.bos_token or "\0")  # as apply_chat_template of processors decides
            ids, along, media = self.reader.read(text, prompt, special=not begins)
        elif self.writer.chat_template:
            ids = self._templated(turns)
        else:
            # As the tokenizer writes it, an end token behind it included: to some models that parts text and answer.
            text = "\n".join(turn["content"] for turn in turns)
            begun = text.removeprefix(self.tokenizer.bos_token or "")  # which a user may write, and has then once
            split = {"split_special_tokens": True} if self._holds_control(begun) else {}
            ids = list(self.tokenizer(text, **split).input_ids)
        if self.writer.chat_template:
            opening = self._opening(turns)
        doubled, begin = 0, self.tokenizer.bos_token_id
        while begin is not None and ids[doubled : doubled + 2] == [begin, begin]:  # of the template or text, and of the
            doubled += 1  # tokenizer
        ids = ids[doubled:]
        self._check(ids, prompt)
        beside = {name: tuple(values[doubled:]) for name, values in along.items()}
        return Encoded(tuple(ids), opening, beside, media)

    def _templated(self, turns: Sequence[dict[str, Any]]) -> list[int]:
        """A conversation through the template; contents that hold a control token are split into tokens apart."""
        marks: dict[str, str] = {}
        masked = []
        for k, turn in enumerate(turns):
            if self._holds_control(turn["content"]):
                marks[f"{QUESTION}{k}z"] = turn["content"]
                turn = {**turn, "content": f"{QUESTION}{k}z"}
            masked.append(turn)
        if not marks:
            return list(self._apply(turns, add_generation_prompt=True, return_dict=False))
        ids: list[int] = []
        for part in re.split(f"({'|'.join(marks)})", self._write(masked, add_generation_prompt=True)):
            ids += self._as_text(marks[part]) if part in marks else self._as_written(part)
        return ids

    def _holds_control(self, content: Any) -> bool:
        return isinstance(content, str) and any(token in content for token in self._controls)

    @cached_property
    def _controls(self) -> list[str]:
        """Special tokens that are no words: not those that come in pairs, as <think> and </think>, nor the unknown."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        known = {*map(str, self.tokenizer.all_special_tokens), *added} - {"", self.tokenizer.unk_token}
        words = {*known, *map(str, self.tokenizer.added_tokens_decoder.values())}
        paired = {token for token in known if {f"</{token[1:]}", f"<{token[2:]}"} & words}
        return sorted(known - paired)

    def _as_text(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids) if text else []

    def _as_written(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def _check(self, ids: Sequence[int], prompt: Prompt) -> None:
        if not ids:
            raise UsageError(f"prompt {prompt.text!r} has no tokens in this model's vocabulary; write more")
        if max(ids) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UsageError(
                f"prompt {prompt.text[:40]!r} has the token {token!r} (id {max(ids)}), but the model knows "
                f"{self.vocabulary} tokens only; take the tokenizer that belongs to its weights"
            )

    def _with_media(self, turns: Sequence[dict[str, Any]], prompt: Prompt) -> str:
        """The written prompt, a placeholder in it for each medium."""
        assert self.reader is not None
        parts, first = self.reader.parts(prompt), next((turn for turn in turns if turn["role"] == "user"), turns[-1])
        if self.in_parts:
            own = [{"type": medium} for medium in parts] + [{"type": "text", "text": first["content"]}]
            turns = [{**turn, "content": own} if turn is first else turn for turn in turns]
            return self._write(turns, add_generation_prompt=True)
        marks = "".join(self.reader.mark(medium) or "" for medium in parts)
        turns = [{**turn, "content": marks + turn["content"]} if turn is first else turn for turn in turns]
        if self.writer.chat_template:
            return self._write(turns, add_generation_prompt=True)
        return "\n".join(turn["content"] for turn in turns)

    def turns(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The prompt as messages: its fact `messages`, a conversation, or one turn; a system turn of its own stays."""
        given = prompt.facts.get("messages") or [{"role": "user", "content": prompt.text}]
        system = self.settings.system
        own = [{"role": "system", "content": system}] if system and given[0]["role"] != "system" else []
        return own + [dict(turn) for turn in given]

    def _apply(self, turns: Sequence[dict[str, Any]], **options: Any) -> Any:
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

    def _write(self, turns: Sequence[dict[str, Any]], **options: Any) -> str:
        return str(self._apply(turns, tokenize=False, **options))

    def _check_arguments(self) -> None:
        given, parameters = self.settings.template, inspect.signature(self.writer.apply_chat_template).parameters
        if given and not self.writer.chat_template:
            raise UsageError("policy.template is set, but the model's tokenizer has no chat template; remove it")
        own = {"messages", *parameters} - {"tools", "documents"}
        if taken := sorted(own & given.keys()):
            raise UsageError(f"policy.template.{taken[0]} is genalign's own; name variables of the chat template only")

    def _check_template(self) -> None:
        question, system = self.turns(Prompt(QUESTION)), self.settings.system
        alone = self._write(question[-1:], add_generation_prompt=True)
        if QUESTION not in alone:
            raise UsageError("the model's chat template leaves out the text of a user turn; give it one for texts")
        if system and self._write(question, add_generation_prompt=True) == alone and system.strip() not in alone:
            raise UsageError(
                "the model's chat template takes no system turn (it leaves it out); remove policy.system, or write its "
                "text into the prompts"
            )

    # ---- answers ----------------------------------------------------------------------------------------------------

    def text(self, encoded: Encoded, completion: Sequence[int]) -> str:
        """What rewards read of a completion."""
        kept = [token for token in completion if token not in self.cut]
        return encoded.opening + str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def answer(self, encoded: Encoded, text: str) -> tuple[int, ...]:
        """The tokens of a given text as the model would have sampled them, up to and with the one that ends a turn.

        They are encoded apart from the prompt's, as sampling cannot join a completion's first token to the prompt; what
        the template opened is the prompt's.
        """
        mark = encoded.opening.rstrip()
        own = text.removeprefix(mark).lstrip() if mark and text.startswith(mark) else text
        ids = self.tokenizer(own, add_special_tokens=False).input_ids
        return (*(token for token in ids if token not in self.ends), *self._answer_end)

    def tool_turn(self, text: str, after: int) -> list[int]:
        """The tokens between two turns of the model: the end of the first, which may have ended by its token `after`
        already, the tool's answer, and what the template writes before the next one."""
        before, behind = self._tool_frame
        ids = self._as_written(before)
        return [*(ids[1:] if ids[:1] == [after] else ids), *self._as_text(text), *self._as_written(behind)]

    @cached_property
    def _tool_frame(self) -> tuple[str, str]:
        """What is written between an answer and the tool's, and behind that: in a turn of the tool, or, where the
        template knows none, of the user. Without a template: a line break each."""
        said = [*self.turns(Prompt(QUESTION)), {"role": "assistant", "content": ANSWER}]
        if not self.writer.chat_template:
            return "\n", "\n"
        for role in ("tool", "user"):
            try:
                written = self._write([*said, {"role": role, "content": TOOL}], add_generation_prompt=True)
            except UsageError:
                continue
            _, answer, rest = written.rpartition(ANSWER)
            before, tool, behind = rest.partition(TOOL)
            if answer and tool:
                return before, behind
        raise UsageError("the model's chat template writes no turn after an answer; remove policy.environment")

    @property
    def _answer_end(self) -> list[int]:
        """The end of an answer: the template's, up to its first end token; without one, the tokenizer's own."""
        for at, token in enumerate(self.turn_end, 1):
            if token in self.ends:
                return self.turn_end[:at]
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def _opening(self, turns: Sequence[dict[str, Any]]) -> str:
        """The end of a written prompt from the first tag on that it leaves open for the answer; "" for none."""
        # A prompt may hold any tag or word, so a mark at its end shows where the template goes on.
        marked = {**turns[-1], "content": f"{turns[-1]['content']}\n{QUESTION}"}
        tail = self._write([*turns[:-1], marked], add_generation_prompt=True).rpartition(QUESTION)[2].lstrip()
        header, closing, _ = self._frame
        known = header is not None and tail.startswith(header)
        # An unknown header may hold what looks like a tag, so only tags at the very end count.
        inside = tail.removeprefix(str(header)) if known else _open_at_end(tail)
        for tag in OPEN_TAG.finditer(inside):
            close = f"</{tag[1]}>"
            if close not in inside[tag.end() :] and close not in closing:
                return inside[tag.start() :]
        return ""

    @cached_property
    def _frame(self) -> Frame:
        question, answer = self.turns(Prompt(QUESTION)), {"role": "assistant", "content": ANSWER}
        if not self.writer.chat_template:
            return Frame()
        try:
            closing = self._write([*question, answer]).rpartition(ANSWER)[2]
            # An earlier answer: before the last one, some templates write an empty block of thoughts.
            between = self._write([*question, answer, question[-1]]).split(QUESTION)[1]
        except UsageError:  # a template of single questions
            return Frame()
        header, _, following = between.lstrip().partition(ANSWER)
        at_end = _open_at_end(header)
        tag = OPEN_TAG.match(at_end)
        if tag and f"</{tag[1]}>" not in closing:  # it opens a tag of the answer before every answer
            header = header.removesuffix(at_end)
        return Frame(header, closing, following)

    @cached_property
    def turn_end(self) -> list[int]:
        """The tokens that the chat template writes at an answer's end; where it writes none, those that begin a turn.

        Up to the first white space: what stands behind is no longer the model's to write.
        """
        unknown = {self.tokenizer.unk_token_id} - self.ends  # to CLIP's tokenizers one token is both
        known = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder} - unknown
        ends = self._frame.closing.split()[:1] or self._frame.following.split()[:1]
        return [token for token in self.tokenizer("".join(ends), add_special_tokens=False).input_ids if token in known]

    def _warn_of_turn_end(self) -> None:
        """A model trained on its template would write on past its turn, and rewards would read what follows."""
        names = self.tokenizer.convert_ids_to_tokens(sorted(self.ends))
        ends, closing = ", ".join(map(repr, names)) or "none", self._frame.closing.strip()
        if self.turn_end and not self.ends & {*self.turn_end}:
            last = self.turn_end[-1]
            log.warning(
                "the chat template ends a turn with %r, which is not an end token of the model (%s), so completions "
                "run on past their turn; add its id %d to eos_token_id in the model's generation_config.json",
                self.tokenizer.convert_ids_to_tokens(last), ends, last,
            )  # fmt: skip
        elif closing and not self.turn_end:
            log.warning(
                "the chat template ends a turn with %r, which is not a token of this model, so completions end at %s "
                "only; take the tokenizer that the template was written for",
                closing, ends,
            )  # fmt: skip


def _in_parts(content: Any) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _open_at_end(text: str) -> str:
    found = OPEN_AT_END.search(text)
    return found[0] if found else ""
