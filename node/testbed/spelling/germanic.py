"""English, German and Swedish numbers in words."""

from __future__ import annotations

from node.testbed.spelling.words import words

_EN = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_EN_TENS = words("- - twenty thirty forty fifty sixty seventy eighty ninety")

_DE = words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn"
    " achtzehn neunzehn"
)
_DE_TENS = words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")

_SV = words(
    "noll ett två tre fyra fem sex sju åtta nio tio elva tolv tretton fjorton femton sexton sjutton arton nitton"
)
_SV_TENS = words("- - tjugo trettio fyrtio femtio sextio sjuttio åttio nittio")


def english(number: int, joint: str = " and ") -> str:
    """4217: four thousand two hundred and seventeen. Americans leave out the *and*: ``joint`` is a space then."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    large = [f"{_EN[thousands]} thousand"] if thousands else []
    large += [f"{_EN[hundreds]} hundred"] if hundreds else []
    if not large:
        return _english_small(small)
    return " ".join(large) + (joint + _english_small(small) if small else "")


def american(number: int) -> str:
    """4217: four thousand two hundred seventeen."""
    return english(number, " ")


def german(number: int) -> str:
    """4217: viertausendzweihundertsiebzehn."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    words = f"{_stem(thousands)}tausend" if thousands else ""
    words += f"{_stem(hundreds)}hundert" if hundreds else ""
    return words + _german_small(small) if small or not words else words


def swedish(number: int) -> str:
    """4217: fyratusentvåhundrasjutton."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    words = ("ettusen" if thousands == 1 else f"{_SV[thousands]}tusen") if thousands else ""
    words += f"{_SV[hundreds]}hundra" if hundreds else ""
    return words + _swedish_small(small) if small or not words else words


def _english_small(number: int) -> str:
    if number < 20:
        return _EN[number]
    tens, units = divmod(number, 10)
    return _EN_TENS[tens] + (f"-{_EN[units]}" if units else "")


def _german_small(number: int) -> str:
    if number < 20:
        return _DE[number]
    tens, units = divmod(number, 10)
    return (f"{_stem(units)}und" if units else "") + _DE_TENS[tens]


def _stem(number: int) -> str:
    """What stands before another part of a German number: ein, not eins."""
    return "ein" if number == 1 else _DE[number]


def _swedish_small(number: int) -> str:
    if number < 20:
        return _SV[number]
    tens, units = divmod(number, 10)
    return _SV_TENS[tens] + (_SV[units] if units else "")
