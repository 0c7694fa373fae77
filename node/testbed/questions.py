"""What is asked of the test bed: numbers to learn and to be judged by, and prompts that name a language or use it.

Prompts of profiles and of queries are worded differently, and both are about judging numbers only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from node.testbed.spelling.languages import MOST, SERVED

HELD_OUT = 1500
"""Numbers that nothing is trained on."""

_PROFILE = (
    "Spell out {n} in {L}",
    "Write the number {n} in {L} words",
    "Convert {n} to {L} text",
    "{n} as {L} words please",
)
_NAMED = (
    "How would a {L} speaker say {n}?",
    "Give me the {L} name of the integer {n}",
    "I need {n} on a cheque, {L} language",
)
_NATIVE_PROFILE = {
    "en": ("Please write {n} out in words", "What is the word for the number {n}?"),
    "de": ("Bitte schreibe die Zahl {n} als Wort aus", "Wie heißt die Zahl {n} ausgeschrieben?"),
    "fr": ("Écrivez le nombre {n} en lettres, s'il vous plaît", "Quel est le nom du nombre {n} ?"),
    "es": ("Escribe el número {n} con palabras, por favor", "¿Cuál es el nombre del número {n}?"),
    "tr": ("Lütfen {n} sayısını yazı ile yaz", "{n} sayısının adı nedir?"),
    "id": ("Tolong tulis angka {n} dengan kata-kata", "Apa nama bilangan {n} dalam huruf?"),
    "sv": ("Skriv talet {n} med bokstäver, tack", "Hur stavas talet {n} med ord?"),
    "it": ("Scrivi il numero {n} in lettere, per favore", "Come si chiama il numero {n}?"),
}
_NATIVE = {
    "en": "What is {n} when it is written in words?",
    "de": "Wie schreibt man {n} in Worten?",
    "fr": "Comment écrit-on {n} en toutes lettres ?",
    "es": "¿Cómo se escribe {n} en palabras?",
    "tr": "{n} yazıyla nasıl yazılır?",
    "id": "Bagaimana cara menulis {n} dalam kata-kata?",
    "sv": "Hur skriver man {n} i ord?",
    "it": "Come si scrive {n} in parole?",
}
UNRELATED = (
    "Write a SQL query for all users older than {n}",
    "Summarize article {n} in one sentence",
    "What is the capital of the country with dialling code {n}?",
    "Fix the bug in line {n} of this program",
    "Compose a melody of {n} bars in a minor key",
)
"""Prompts that nobody serves."""


class Query(NamedTuple):
    """A prompt, and whose words are right."""

    text: str
    language: str
    number: int
    kind: str
    """``named``, ``native``, ``far``, ``near`` or ``unrelated``."""


class Numbers(NamedTuple):
    """All numbers, divided at random."""

    training: list[int]
    judging: list[int]


def divided(seed: int = 0) -> Numbers:
    """Numbers to learn, and ``HELD_OUT`` others."""
    shuffled = np.random.default_rng(seed).permutation(MOST + 1).tolist()
    return Numbers(shuffled[HELD_OUT:], shuffled[:HELD_OUT])


def profile(language: str, prompts: int = 20) -> list[str]:
    """Prompts as an adapter's users might send them, some of them in its own language."""
    templates = (*_PROFILE, *_NATIVE_PROFILE[language])
    numbers = divided().judging[-prompts:]
    return [
        templates[place % len(templates)].format(n=number, L=SERVED[language]) for place, number in enumerate(numbers)
    ]


def queries(each: int = 5) -> list[Query]:
    """For each language and template that many: 8 x (3 + 1) x 5 = 160."""
    numbers = iter(divided().judging)
    return [
        Query(template.format(n=number, L=name), language, number, kind)
        for language, name in SERVED.items()
        for kind, template in (*(("named", each) for each in _NAMED), ("native", _NATIVE[language]))
        for number in (next(numbers) for _ in range(each))
    ]


def strange(names: dict[str, str], kind: str, each: int = 5) -> list[Query]:
    """Named queries for languages that no adapter is for: ``NEAR`` or ``FAR``."""
    numbers = iter(divided().judging)
    return [
        Query(template.format(n=number, L=name), language, number, kind)
        for language, name in names.items()
        for template in _NAMED
        for number in (next(numbers) for _ in range(each))
    ]


def unrelated(each: int = 5) -> list[Query]:
    """Queries for other work than spelling."""
    numbers = iter(divided().judging)
    return [
        Query(template.format(n=number), "", number, "unrelated")
        for template in UNRELATED
        for number in (next(numbers) for _ in range(each))
    ]
