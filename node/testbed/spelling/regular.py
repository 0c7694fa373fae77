"""Turkish, Indonesian, Malay, Finnish and Esperanto numbers in words: languages that count without many exceptions."""

from __future__ import annotations

from node.testbed.spelling.words import words

_TR = words("sıfır bir iki üç dört beş altı yedi sekiz dokuz")
_TR_TENS = words("- on yirmi otuz kırk elli altmış yetmiş seksen doksan")
_ID = words("nol satu dua tiga empat lima enam tujuh delapan sembilan")
_MS = words("kosong satu dua tiga empat lima enam tujuh lapan sembilan")
_FI = words("nolla yksi kaksi kolme neljä viisi kuusi seitsemän kahdeksan yhdeksän kymmenen")
_EO = words("nul unu du tri kvar kvin ses sep ok naŭ")


def turkish(number: int) -> str:
    """4217: dört bin iki yüz on yedi."""
    thousands, hundreds, tens, units = _digits(number)
    words = [_TR[thousands]] * (thousands > 1) + ["bin"] * (thousands > 0)
    words += [_TR[hundreds]] * (hundreds > 1) + ["yüz"] * (hundreds > 0)
    words += [_TR_TENS[tens]] * (tens > 0) + [_TR[units]] * (units > 0)
    return " ".join(words) or _TR[0]


def indonesian(number: int) -> str:
    """4217: empat ribu dua ratus tujuh belas."""
    return _malayan(number, _ID)


def malay(number: int) -> str:
    """4217: empat ribu dua ratus tujuh belas; 8 is lapan, and 0 kosong."""
    return _malayan(number, _MS)


def finnish(number: int) -> str:
    """4217: neljätuhattakaksisataaseitsemäntoista."""
    thousands, hundreds, tens, units = _digits(number)
    words = ("tuhat" if thousands == 1 else f"{_FI[thousands]}tuhatta") if thousands else ""
    words += ("sata" if hundreds == 1 else f"{_FI[hundreds]}sataa") if hundreds else ""
    if tens == 1:
        return words + (f"{_FI[units]}toista" if units else _FI[10])
    words += f"{_FI[tens]}kymmentä" if tens else ""
    return words + (_FI[units] if units or not words else "")


def esperanto(number: int) -> str:
    """4217: kvar mil ducent dek sep."""
    thousands, hundreds, tens, units = _digits(number)
    words = [_EO[thousands]] * (thousands > 1) + ["mil"] * (thousands > 0)
    for count, unit in ((hundreds, "cent"), (tens, "dek")):
        words += [(_EO[count] if count > 1 else "") + unit] * (count > 0)
    return " ".join(words + [_EO[units]] * (units > 0)) or _EO[0]


def _malayan(number: int, digits: list[str]) -> str:
    thousands, hundreds, tens, units = _digits(number)
    words = []
    for count, unit in ((thousands, "ribu"), (hundreds, "ratus")):
        if count:
            words.append(f"se{unit}" if count == 1 else f"{digits[count]} {unit}")
    if tens == 1 and units:
        words.append("sebelas" if units == 1 else f"{digits[units]} belas")
        return " ".join(words)
    if tens:
        words.append("sepuluh" if tens == 1 else f"{digits[tens]} puluh")
    if units or not words:
        words.append(digits[units])
    return " ".join(words)


def _digits(number: int) -> tuple[int, int, int, int]:
    return number // 1000, number // 100 % 10, number // 10 % 10, number % 10
