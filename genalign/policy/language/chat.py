"""How prompts become tokens for a language model, and sampled tokens the text that rewards read."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from genalign.policy.language.batch import Encoded
from genalign.policy.language.processor import Reader
from genalign.policy.language.template import QUESTION, Template
from genalign.policy.settings import PolicySettings
from genalign.types import Prompt, UsageError

log = logging.getLogger(__name__)


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
        self.template = Template(tokenizer, settings, None if reader is None else reader.processor)
        # Of prompts that are too long; each is refused, with its place in a file.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
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
        turns = self.template.turns(prompt)
        if self.reader is not None:
            text = self._with_media(turns, prompt)
            begins = text.startswith(self.tokenizer.bos_token or "\0")  # as apply_chat_template of processors decides
            ids, along, media = self.reader.read(text, prompt, special=not begins)
        elif self.template.text:
            ids = self._templated(turns)
        else:
            # As the tokenizer writes it, an end token behind it included: to some models that parts text and answer.
            text = "\n".join(turn["content"] for turn in turns)
            begun = text.removeprefix(self.tokenizer.bos_token or "")  # which a user may write, and has then once
            split = {"split_special_tokens": True} if self._holds_control(begun) else {}
            ids = list(self.tokenizer(text, **split).input_ids)
        if self.template.text:
            opening = self.template.opening(turns)
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
            return list(self.template.apply(turns, add_generation_prompt=True, return_dict=False))
        ids: list[int] = []
        for part in re.split(f"({'|'.join(marks)})", self.template.write(masked, add_generation_prompt=True)):
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
        if self.template.in_parts:
            own = [{"type": medium} for medium in parts] + [{"type": "text", "text": first["content"]}]
            turns = [{**turn, "content": own} if turn is first else turn for turn in turns]
            return self.template.write(turns, add_generation_prompt=True)
        marks = "".join(self.reader.mark(medium) or "" for medium in parts)
        turns = [{**turn, "content": marks + turn["content"]} if turn is first else turn for turn in turns]
        if self.template.text:
            return self.template.write(turns, add_generation_prompt=True)
        return "\n".join(turn["content"] for turn in turns)

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
        before, behind = self.template.tool_frame
        ids = self._as_written(before)
        return [*(ids[1:] if ids[:1] == [after] else ids), *self._as_text(text), *self._as_written(behind)]

    @property
    def _answer_end(self) -> list[int]:
        """The end of an answer: the template's, up to its first end token; without one, the tokenizer's own."""
        for at, token in enumerate(self.turn_end, 1):
            if token in self.ends:
                return self.turn_end[:at]
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    @cached_property
    def turn_end(self) -> list[int]:
        """The tokens that the chat template writes at an answer's end; where it writes none, those that begin a turn.

        Up to the first white space: what stands behind is no longer the model's to write.
        """
        unknown = {self.tokenizer.unk_token_id} - self.ends  # to CLIP's tokenizers one token is both
        known = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder} - unknown
        ends = self.template.frame.closing.split()[:1] or self.template.frame.following.split()[:1]
        return [token for token in self.tokenizer("".join(ends), add_special_tokens=False).input_ids if token in known]

    def _warn_of_turn_end(self) -> None:
        """A model trained on its template would write on past its turn, and rewards would read what follows."""
        names = self.tokenizer.convert_ids_to_tokens(sorted(self.ends))
        ends, closing = ", ".join(map(repr, names)) or "none", self.template.frame.closing.strip()
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
