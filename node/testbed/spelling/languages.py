"""Who spells what: the languages of the test bed by their codes, variants of them, and languages that nobody serves."""

from __future__ import annotations

from collections.abc import Callable

from node.errors import ConfigError
from node.testbed.spelling import germanic, regular, romance

MOST = 9999
"""The largest number that is spelled."""

SERVED = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "tr": "Turkish",
    "id": "Indonesian",
    "sv": "Swedish",
    "it": "Italian",
}
"""Each has an adapter."""
NEAR = {
    "en-US": "American English",
    "fr-BE": "Belgian French",
    "fr-CH": "Swiss French",
    "ms": "Malay",
}
"""Each is close to one that is served, and not the same."""
FAR = {"pt": "Portuguese", "fi": "Finnish", "eo": "Esperanto"}
"""Nobody serves these."""

_SPELLERS: dict[str, Callable[[int], str]] = {
    "en": germanic.english,
    "de": germanic.german,
    "fr": romance.french,
    "es": romance.spanish,
    "tr": regular.turkish,
    "id": regular.indonesian,
    "sv": germanic.swedish,
    "it": romance.italian,
    "en-US": germanic.american,
    "fr-BE": romance.belgian,
    "fr-CH": romance.swiss,
    "ms": regular.malay,
    "pt": romance.portuguese,
    "fi": regular.finnish,
    "eo": regular.esperanto,
}


def spell(language: str, number: int) -> str:
    """A number in words.

    Raises:
        ConfigError: there is no such language, or the number is not 0 to ``MOST``.
    """
    if language not in _SPELLERS:
        raise ConfigError(f"language: {language!r} is not spelled; allowed: {', '.join(_SPELLERS)}")
    if not 0 <= number <= MOST:
        raise ConfigError(f"number: {number}; allowed: 0 to {MOST}")
    return _SPELLERS[language](number)
