"""French, Spanish, Italian and Portuguese numbers in words."""

from __future__ import annotations

from node.testbed.spelling.words import words

_FR = words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit"
    " dix-neuf"
)
_FR_TENS = words("- - vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt")

_ES = words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete"
    " dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete"
    " veintiocho veintinueve"
)
_ES_TENS = words("- - - treinta cuarenta cincuenta sesenta setenta ochenta noventa")
_ES_HUNDREDS = words(
    "- ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos"
)

_IT = words(
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici"
    " diciassette diciotto diciannove"
)
_IT_TENS = words("- - venti trenta quaranta cinquanta sessanta settanta ottanta novanta")

_PT = words(
    "zero um dois três quatro cinco seis sete oito nove dez onze doze treze catorze quinze dezesseis dezessete dezoito"
    " dezenove"
)
_PT_TENS = words("- - vinte trinta quarenta cinquenta sessenta setenta oitenta noventa")
_PT_HUNDREDS = words("- cento duzentos trezentos quatrocentos quinhentos seiscentos setecentos oitocentos novecentos")


def french(number: int) -> str:
    """4217: quatre mille deux cent dix-sept."""
    return _french(number, {})


def belgian(number: int) -> str:
    """French, with septante for 70 and nonante for 90."""
    return _french(number, {7: "septante", 9: "nonante"})


def swiss(number: int) -> str:
    """French, with septante for 70, huitante for 80 and nonante for 90."""
    return _french(number, {7: "septante", 8: "huitante", 9: "nonante"})


def spanish(number: int) -> str:
    """4217: cuatro mil doscientos diecisiete."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    words = ["mil" if thousands == 1 else f"{_ES[thousands]} mil"] if thousands else []
    if hundreds:
        words.append("cien" if rest == 100 else _ES_HUNDREDS[hundreds])
    if small or not words:
        words.append(_spanish_small(small))
    return " ".join(words)


def italian(number: int) -> str:
    """4217: quattromiladuecentodiciassette."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    words = ("mille" if thousands == 1 else f"{_IT[thousands]}mila") if thousands else ""
    if hundreds:
        # centotto and centottanta: two o's are one
        words += ("" if hundreds == 1 else _IT[hundreds]) + ("cent" if small == 8 or small // 10 == 8 else "cento")
    if not words:
        return _italian_small(small)
    return words + ("tré" if small == 3 else _italian_small(small) if small else "")


def portuguese(number: int) -> str:
    """4217: quatro mil duzentos e dezessete, as in Brazil."""
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    tail = [] if not hundreds else ["cem" if rest == 100 else _PT_HUNDREDS[hundreds]]
    tail += [_portuguese_small(small)] if small or not number else []
    if not thousands:
        return " e ".join(tail)
    head = "mil" if thousands == 1 else f"{_PT[thousands]} mil"
    joint = " e " if len(tail) == 1 else " "
    return head + (joint + " e ".join(tail) if tail else "")


def _french(number: int, tens: dict[int, str]) -> str:
    thousands, rest = divmod(number, 1000)
    hundreds, small = divmod(rest, 100)
    words = ["mille" if thousands == 1 else f"{_FR[thousands]} mille"] if thousands else []
    if hundreds:
        plural = "s" if hundreds > 1 and not small else ""
        words.append(f"{_FR[hundreds]} cent{plural}" if hundreds > 1 else "cent")
    if small or not words:
        words.append(_french_small(small, tens))
    return " ".join(words)


def _french_small(number: int, names: dict[int, str]) -> str:
    """``names``: regional words for tens, which are counted regularly."""
    if number < 20:
        return _FR[number]
    tens, units = divmod(number, 10)
    if tens in (7, 9) and tens not in names:
        units += 10
    stem = names.get(tens, _FR_TENS[tens])
    if not units:
        return "quatre-vingts" if stem == "quatre-vingt" else stem
    if units in (1, 11) and stem != "quatre-vingt":
        return f"{stem} et {_FR[units]}"
    return f"{stem}-{_FR[units]}"


def _spanish_small(number: int) -> str:
    if number < 30:
        return _ES[number]
    tens, units = divmod(number, 10)
    return _ES_TENS[tens] + (f" y {_ES[units]}" if units else "")


def _italian_small(number: int) -> str:
    if number < 20:
        return _IT[number]
    tens, units = divmod(number, 10)
    if units in (1, 8):  # ventuno, ventotto: the last vowel gives way
        return _IT_TENS[tens][:-1] + _IT[units]
    return _IT_TENS[tens] + ("tré" if units == 3 else _IT[units] if units else "")


def _portuguese_small(number: int) -> str:
    if number < 20:
        return _PT[number]
    tens, units = divmod(number, 10)
    return _PT_TENS[tens] + (f" e {_PT[units]}" if units else "")
