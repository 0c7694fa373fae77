"""Numbers in words: well-known spellings in each language, and no two numbers alike in any."""

import pytest

from node.errors import ConfigError
from node.testbed.spelling.languages import FAR, MOST, NEAR, SERVED, spell

KNOWN = {
    "en": {
        0: "zero",
        12: "twelve",
        18: "eighteen",
        40: "forty",
        99: "ninety-nine",
        100: "one hundred",
        101: "one hundred and one",
        342: "three hundred and forty-two",
        1000: "one thousand",
        1005: "one thousand and five",
        1100: "one thousand one hundred",
        4217: "four thousand two hundred and seventeen",
        9999: "nine thousand nine hundred and ninety-nine",
    },
    "en-US": {100: "one hundred", 101: "one hundred one", 1005: "one thousand five", 21: "twenty-one"},
    "de": {
        0: "null",
        1: "eins",
        16: "sechzehn",
        17: "siebzehn",
        21: "einundzwanzig",
        30: "dreißig",
        61: "einundsechzig",
        77: "siebenundsiebzig",
        100: "einhundert",
        101: "einhunderteins",
        1000: "eintausend",
        1021: "eintausendeinundzwanzig",
        4217: "viertausendzweihundertsiebzehn",
        9999: "neuntausendneunhundertneunundneunzig",
    },
    "sv": {
        0: "noll",
        1: "ett",
        18: "arton",
        21: "tjugoett",
        40: "fyrtio",
        100: "etthundra",
        1000: "ettusen",
        4217: "fyratusentvåhundrasjutton",
    },
    "fr": {
        0: "zéro",
        16: "seize",
        17: "dix-sept",
        21: "vingt et un",
        22: "vingt-deux",
        61: "soixante et un",
        70: "soixante-dix",
        71: "soixante et onze",
        77: "soixante-dix-sept",
        80: "quatre-vingts",
        81: "quatre-vingt-un",
        91: "quatre-vingt-onze",
        99: "quatre-vingt-dix-neuf",
        100: "cent",
        180: "cent quatre-vingts",
        200: "deux cents",
        201: "deux cent un",
        1000: "mille",
        1999: "mille neuf cent quatre-vingt-dix-neuf",
        2000: "deux mille",
        4217: "quatre mille deux cent dix-sept",
    },
    "fr-BE": {71: "septante et un", 80: "quatre-vingts", 81: "quatre-vingt-un", 92: "nonante-deux", 21: "vingt et un"},
    "fr-CH": {70: "septante", 80: "huitante", 81: "huitante et un", 92: "nonante-deux", 180: "cent huitante"},
    "es": {
        0: "cero",
        15: "quince",
        16: "dieciséis",
        21: "veintiuno",
        22: "veintidós",
        31: "treinta y uno",
        100: "cien",
        101: "ciento uno",
        500: "quinientos",
        700: "setecientos",
        900: "novecientos",
        1000: "mil",
        1100: "mil cien",
        2000: "dos mil",
        4217: "cuatro mil doscientos diecisiete",
    },
    "it": {
        0: "zero",
        3: "tre",
        17: "diciassette",
        21: "ventuno",
        23: "ventitré",
        28: "ventotto",
        33: "trentatré",
        81: "ottantuno",
        100: "cento",
        103: "centotré",
        108: "centotto",
        180: "centottanta",
        188: "centottantotto",
        200: "duecento",
        1000: "mille",
        1001: "milleuno",
        2000: "duemila",
        4217: "quattromiladuecentodiciassette",
    },
    "pt": {
        0: "zero",
        16: "dezesseis",
        21: "vinte e um",
        100: "cem",
        101: "cento e um",
        1000: "mil",
        1005: "mil e cinco",
        1100: "mil e cem",
        1234: "mil duzentos e trinta e quatro",
        4217: "quatro mil duzentos e dezessete",
    },
    "tr": {
        0: "sıfır",
        10: "on",
        11: "on bir",
        99: "doksan dokuz",
        100: "yüz",
        101: "yüz bir",
        200: "iki yüz",
        1000: "bin",
        1100: "bin yüz",
        2000: "iki bin",
        4217: "dört bin iki yüz on yedi",
    },
    "id": {
        0: "nol",
        10: "sepuluh",
        11: "sebelas",
        12: "dua belas",
        20: "dua puluh",
        21: "dua puluh satu",
        100: "seratus",
        1000: "seribu",
        1111: "seribu seratus sebelas",
        4217: "empat ribu dua ratus tujuh belas",
    },
    "ms": {0: "kosong", 8: "lapan", 18: "lapan belas", 111: "seratus sebelas"},
    "fi": {
        0: "nolla",
        10: "kymmenen",
        11: "yksitoista",
        20: "kaksikymmentä",
        100: "sata",
        200: "kaksisataa",
        1000: "tuhat",
        4217: "neljätuhattakaksisataaseitsemäntoista",
    },
    "eo": {0: "nul", 10: "dek", 11: "dek unu", 20: "dudek", 100: "cent", 1000: "mil", 4217: "kvar mil ducent dek sep"},
}


@pytest.mark.parametrize("language", KNOWN)
def test_well_known_spellings(language):
    assert {number: spell(language, number) for number in KNOWN[language]} == KNOWN[language]


def test_every_language_is_checked():
    assert KNOWN.keys() == {*SERVED, *NEAR, *FAR}


@pytest.mark.parametrize("language", KNOWN)
def test_no_two_numbers_are_spelled_alike(language):
    words = [spell(language, number) for number in range(MOST + 1)]
    assert len(set(words)) == MOST + 1
    assert all(each == each.strip() and "  " not in each and "-  " not in each for each in words)


def test_served_languages_share_few_spellings():
    """What one adapter has learnt is of no use for the words of another."""
    languages = list(SERVED)
    words = {language: {spell(language, number) for number in range(MOST + 1)} for language in languages}
    shared = {
        (one, other): len(words[one] & words[other])
        for place, one in enumerate(languages)
        for other in languages[place + 1 :]
    }
    assert max(shared.values()) <= 2  # sei and zero, for example


def test_variants_are_close_to_what_is_served_and_not_the_same():
    of = {"en-US": "en", "fr-BE": "fr", "fr-CH": "fr", "ms": "id"}
    for variant, served in of.items():
        alike = sum(spell(variant, number) == spell(served, number) for number in range(MOST + 1))
        assert 0 < alike < MOST + 1, variant


def test_what_cannot_be_spelled_is_refused():
    with pytest.raises(ConfigError, match="language: 'xx' is not spelled; allowed: en, de"):
        spell("xx", 1)
    for number in (-1, MOST + 1):
        with pytest.raises(ConfigError, match=f"number: {number}; allowed: 0 to 9999"):
            spell("en", number)
