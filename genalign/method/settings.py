"""What all methods' settings share, and how `method.name` finds its family.

A family is one file: the class of its settings, with a preset for each name, and the class that they build. A settings
class with presets joins the table of families when it is defined; genalign/method/__init__.py imports them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor

from genalign.types import Media, Method, Prompt, UsageError, nearest


class PairSource(Protocol):
    """Given pictures or texts of which one was preferred; a pair's number is the uid of its prompt."""

    @property
    def kind(self) -> str:
        """What is compared: "image", "video" or "text"."""
        ...

    @property
    def rows_together(self) -> int:
        """Samples in one forward pass."""
        ...

    def load(self, pairs: Sequence[int]) -> Media:
        """Images in [0,1], or texts, two rows a pair: the preferred one first."""
        ...


class SampleSource(Protocol):
    """Given samples of what a model makes, to be learnt from; a sample's number is the uid of its prompt."""

    @property
    def kind(self) -> str:
        """What they are: "image", "video" or "audio"."""
        ...

    @property
    def rows_together(self) -> int:
        """Samples in one forward pass."""
        ...

    def load(self, numbers: Sequence[int]) -> Media:
        """One row a sample."""
        ...


class LatentReward(Protocol):
    """A reward that reads latents on their way: (prompts, x (R,*L), a, s) -> (R,K) with grad, for x = a x0 + s eps."""

    @property
    def aspects(self) -> tuple[str, ...]: ...

    @property
    def weights(self) -> tuple[float, ...]:
        """What each aspect counts unless a user says otherwise."""
        ...

    def __call__(self, prompts: Sequence[Prompt], x: Tensor, a: float, s: float) -> Tensor: ...


class MethodSettings(BaseModel):
    """A method is a preset's name; keys given beside it replace what the preset says.

    `MethodSettings(name=...)` is an instance of the family's own class, whose fields are all that the method reads.

    Raises UsageError for an unknown name, and for a key that the named method would never read.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    families: ClassVar[list[type[MethodSettings]]] = []  # in the order of their import
    learns_from: ClassVar[frozenset[str]] = frozenset()  # kinds of given pairs: "image", "text"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # name -> what it replaces among the family's defaults
    folders: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # field that names a folder -> shipped rooms that may hold it

    name: str
    """One of the names that `genalign ls methods` prints."""
    group: int = Field(8, ge=1)
    """Samples per prompt."""
    updates_per_rollout: int = Field(1, ge=1)
    """Optimizer updates each rollout is split into; more than one makes the later ones off-policy."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "presets" in vars(cls):
            MethodSettings.families.append(cls)

    def __new__(cls, **given: Any) -> Self:
        name = given.get("name")
        chosen = family(name) if cls is MethodSettings and isinstance(name, str) else cls
        return super().__new__(chosen)  # type: ignore[return-value]

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_family(cls, given: Any, parse: ModelWrapValidatorHandler[Self]) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            return parse(given)
        chosen = family(given["name"])
        if cls is MethodSettings:
            return chosen.model_validate(given)
        if cls is not chosen:
            raise UsageError(f"method {given['name']} is one of {chosen.__name__}, not of {cls.__name__}")
        for key in given:
            if key not in cls.model_fields:
                raise UsageError(_unread(given["name"], key, cls))
        return parse({**cls.presets[given["name"]], **given})

    def require_siblings(self) -> None:
        """Refuse one sample a prompt, where the method compares siblings: the samples of one prompt."""
        if self.group == 1:
            raise UsageError(f"method {self.name} compares siblings, so method.group must be at least 2")

    def build(self, folder: Path) -> Method:
        """The method of these settings; a relative path among them is relative to `folder`."""
        raise NotImplementedError

    def build_on(self, pairs: PairSource, folder: Path = Path()) -> Method:
        """The method of these settings, learning from given pairs; `folder` as of `build`.

        Raises:
            UsageError: it learns from its own samples only, or not from pairs of this kind.
        """
        able = [kind for kind in MethodSettings.families if pairs.kind in kind.learns_from]
        given = {"image": "pictures", "text": "texts"}.get(pairs.kind, f"{pairs.kind}s")
        cure = f", or take one of {', '.join(_names(able))}" if able else ""
        raise UsageError(f"method {self.name} does not learn from given {given}; add the key 'reward'{cure}")

    @property
    def learns_from_samples(self) -> bool:
        """Whether it can do without a reward, by regression to given samples."""
        return False

    def build_on_samples(self, samples: SampleSource) -> Method:
        """The method of these settings, learning from given samples."""
        raise NotImplementedError

    @property
    def guided_by(self) -> str | None:
        """The folder of a fitted reward that guides sampling; who builds the method loads it. None: none guides."""
        return None

    def build_guided(self, latent: Callable[[], LatentReward]) -> Method:
        """The method of these settings, where `guided_by` names a reward; `latent` loads that one."""
        raise NotImplementedError

    @property
    def pictures_are_answers(self) -> bool:
        """Whether the pictures of training prompts are to be learnt from, so that sampling does not see them."""
        return False


def family(name: str) -> type[MethodSettings]:
    """The settings class whose presets include `name`.

    Raises:
        UsageError: there is no such method; the nearest name is given.
    """
    for kind in MethodSettings.families:
        if name in kind.presets:
            return kind
    raise UsageError(f"there is no method {name!r}{nearest(name, _names(MethodSettings.families))}")


def _names(families: Iterable[type[MethodSettings]]) -> list[str]:
    return [name for kind in families for name in kind.presets]


def _unread(name: str, key: str, kind: type[MethodSettings]) -> str:
    readers = _names(one for one in MethodSettings.families if key in one.model_fields)
    if readers:
        return f"method {name} does not read method.{key}; drop it or take one of {', '.join(readers)}"
    return f"there is no key 'method.{key}'{nearest(key, kind.model_fields)}"
