"""What the test bed asks, and the tokens it is asked in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from node.testbed.questions import HELD_OUT, divided, profile, queries, strange, unrelated
from node.testbed.recipe import Recipe
from node.testbed.spelling.languages import FAR, MOST, NEAR, SERVED, spell
from node.testbed.tokens import BOS, EOS, MOST_TOKENS, PAD, answer, prompt, text, tokenizer
from node.testbed.training import batch


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


# Tokens


@given(st.text(max_size=40))
def test_tokens_are_bytes_and_come_back(loaded, said):
    tokens = loaded(said).input_ids
    assert tokens == [BOS, *said.encode()]
    assert loaded.decode(tokens, skip_special_tokens=True) == said


def test_marks_are_where_the_model_expects_them(loaded):
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (PAD, BOS, EOS)
    assert loaded("4217=").input_ids == prompt(4217)
    assert loaded.decode(answer("zwölf"), skip_special_tokens=True) == "zwölf"


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Wie schreibt man 4217 in Worten?", 4217),
        ("Give me the Turkish name of the integer 7", 7),
        ("305", 305),
    ],
)
def test_a_chat_becomes_the_prompt_of_its_last_number(loaded, said, asked):
    chat = [{"role": "system", "content": "You spell 99."}, {"role": "user", "content": said}]
    assert loaded.apply_chat_template(chat, return_dict=False) == prompt(asked)


def test_an_answer_ends_where_it_ends():
    assert text([*answer("deux"), *b"more"]) == "deux"
    assert text([*b"deux", PAD, BOS]) == "deux"
    assert text([0xC3]) == "\ufffd"
    assert text([]) == ""


def test_every_prompt_with_its_answer_fits():
    longest = max(
        len(prompt(number)) + len(answer(spell(each, number))) for each in SERVED for number in range(MOST + 1)
    )
    assert longest == 59
    assert longest <= MOST_TOKENS


# Batches


def test_a_batch_asks_on_the_left_and_counts_the_answers_alone():
    found = batch([7, 4217], ["de", "tr"])
    first = [*prompt(7), *answer("sieben")]
    second = [*prompt(4217), *answer("dört bin iki yüz on yedi")]
    assert found.tokens.tolist() == [first + [PAD] * (len(second) - len(first)), second]
    labels = found.labels.tolist()
    assert labels[0] == [-100] * 3 + answer("sieben") + [-100] * (len(second) - len(first))
    assert labels[1] == [-100] * 6 + answer("dört bin iki yüz on yedi")


# Numbers and prompts


def test_numbers_are_divided_once():
    numbers = divided()
    assert len(numbers.judging) == HELD_OUT
    assert sorted([*numbers.training, *numbers.judging]) == list(range(MOST + 1))
    assert divided() == numbers
    assert divided(1) != numbers


def test_queries_are_of_all_languages_and_of_numbers_that_nothing_is_trained_on():
    asked = queries()
    assert len(asked) == 160
    assert len({query.text for query in asked}) == 160
    judging = set(divided().judging)
    for query in asked:
        assert query.number in judging
        assert str(query.number) in query.text
        assert (SERVED[query.language] in query.text) == (query.kind == "named")
    kinds = [(query.language, query.kind) for query in asked]
    assert all(kinds.count((language, "named")) == 15 for language in SERVED)
    assert all(kinds.count((language, "native")) == 5 for language in SERVED)


def test_profiles_share_neither_wording_nor_numbers_with_queries():
    asked = queries()
    wordings = {query.text.replace(str(query.number), "#") for query in asked}
    numbers = {query.number for query in asked}
    for language in SERVED:
        prompts = profile(language)
        assert len(prompts) == 20
        assert sum(SERVED[language] in each for each in prompts) == 14
        for each in prompts:
            digits = "".join(letter for letter in each if letter.isdigit())
            assert int(digits) in set(divided().judging) - numbers
            assert each.replace(digits, "#") not in wordings


def test_what_nobody_serves_is_asked_too():
    near, far, other = strange(NEAR, "near"), strange(FAR, "far"), unrelated()
    assert (len(near), len(far), len(other)) == (60, 45, 25)
    assert {query.kind for query in (*near, *far, *other)} == {"near", "far", "unrelated"}
    assert not {query.language for query in (*near, *far, *other)} & set(SERVED)


# Recipes


def test_a_digest_is_of_everything_that_training_follows_from():
    digests = {Recipe().digest(0), Recipe().digest(1), Recipe(rank=4).digest(0), Recipe(base_steps=7).digest(0)}
    assert len(digests) == 4
    assert Recipe().digest(0) == Recipe().digest(0)
    assert json.dumps(Recipe().digest(0)).strip('"').isalnum()
