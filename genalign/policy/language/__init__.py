"""Language models, and models that see or hear and write, as policies."""

from genalign.policy.language.load import load_language
from genalign.policy.language.policy import LanguagePolicy
from genalign.policy.language.scoring import Tokens

__all__ = ["LanguagePolicy", "Tokens", "load_language"]
