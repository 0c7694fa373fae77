"""Embeddings, profiles, the index, and the rule that decides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.selection import tasks
from node.selection.deciding import Mode, Rule, calibrated, decide, softmax
from node.selection.embedding import HashedNgrams, Remembering
from node.selection.index import Index, Scored
from node.selection.nearness import cheapest
from node.selection.profile import Card, packed, profile

WORDING = {
    "german": ["Spell {} in German", "{} as German words", "write {} the German way"],
    "french": ["Spell {} in French", "{} as French words", "write {} the French way"],
    "sql": ["SELECT query for {} users", "write SQL for table {}", "SQL join of {} tables"],
    "poem": ["a poem of {} lines", "rhyme about {} cats", "write {} verses on rain"],
}
PROMPTS = {name: [text.format(n) for text in texts for n in (3, 14, 159)] for name, texts in WORDING.items()}
EVERYTHING = [text for texts in PROMPTS.values() for text in texts]
QUERIES = {
    "german": "please say 27 to me in German",
    "french": "how is 27 said in French?",
    "sql": "a SQL query with 5 columns",
    "poem": "compose a poem on 8 stars",
}


@pytest.fixture(scope="module")
def embedder():
    return Remembering(HashedNgrams(EVERYTHING))


def card(name, texts, maker, **changes):
    fields = {"version": "1", "rank": 8, "size_bytes": 100, "base_fingerprint": "base", "embedder": maker.name}
    return Card(name=name, profile=packed(profile(texts, maker)), **{**fields, **changes})


@pytest.fixture
def index(embedder):
    made = Index(embedder.name, "base")
    for name, texts in PROMPTS.items():
        made.add(card(name, texts, embedder))
    return made


# Embedder


def test_rows_have_length_one_and_nothing_stays_nothing(embedder):
    rows = embedder.embed(["some text", "other text", ""])
    assert np.linalg.norm(rows, axis=1).tolist() == pytest.approx([1, 1, 0], abs=1e-6)
    assert rows.dtype == np.float32
    assert embedder.embed([]).shape == (0, embedder.dimensions)


def test_the_same_text_gives_the_same_bits_alone_and_among_others():
    alone, among = HashedNgrams(EVERYTHING), HashedNgrams(EVERYTHING)
    assert alone.embed(["a text"]).tobytes() == among.embed(["b", "a text", "c"])[1].tobytes()


def test_which_number_a_text_has_makes_no_difference(embedder):
    assert embedder.embed(["spell 4217"]).tolist() == embedder.embed(["spell 9"]).tolist()


def test_what_all_texts_share_weighs_less_than_what_tells_them_apart():
    plain, weighted = HashedNgrams(), HashedNgrams([f"Spell 3 in {name}" for name in ("German", "French", "Dutch")])

    def likeness(embedder):
        one, other = embedder.embed(["Spell 3 in German", "Spell 3 in French"])
        return float(one @ other)

    assert likeness(weighted) < likeness(plain)


def test_a_remembered_text_is_not_embedded_again():
    class Counting:
        dimensions, name, calls = 2, "counting", 0

        def embed(self, texts):
            self.calls += len(texts)
            return np.tile(np.float32([1, 0]), (len(texts), 1))

    counting = Counting()
    remembering = Remembering(counting, most=2)
    for text in "ababcab":
        remembering.embed([text])
    assert counting.calls == 5  # a, b, c, and a and b again after c has pushed them out
    assert (remembering.name, remembering.dimensions) == ("counting", 2)


# Profiles


@given(st.permutations(PROMPTS["sql"]))
def test_a_profile_does_not_depend_on_the_order_of_its_texts(texts):
    embedder = HashedNgrams(dimensions=64)
    assert profile(texts, embedder).tobytes() == profile(PROMPTS["sql"], embedder).tobytes()


def test_a_profile_survives_its_card_within_half_precision(embedder):
    vector = profile(PROMPTS["poem"], embedder)
    assert card("poem", PROMPTS["poem"], embedder).vector @ vector == pytest.approx(1.0, abs=1e-5)


def test_a_profile_of_nothing_is_refused(embedder):
    with pytest.raises(ConfigError, match="at least one"):
        profile([], embedder)


@pytest.mark.parametrize("content", [b"", b"abc", np.float16([np.nan, 1]).tobytes(), b"\0" * 200_000])
def test_bytes_that_are_no_profile_are_refused(embedder, content):
    with pytest.raises(ConfigError, match="card of 'x'"):
        Index(embedder.name).add(Card("x", "1", 8, 1, "base", embedder.name, content))


# Index


def test_an_identical_text_has_cosine_one_and_comes_first(embedder):
    index = Index(embedder.name)
    for name in PROMPTS:
        index.add(card(name, PROMPTS[name][:1], embedder))
    first = index.nearest(embedder.embed(PROMPTS["sql"][:1])[0], 1)[0]
    assert first.name == "sql"
    assert first.score == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("task", QUERIES)
def test_a_query_finds_its_task(index, embedder, task):
    assert index.nearest(embedder.embed([QUERIES[task]])[0], 1)[0].name == task


def test_adding_an_adapter_never_changes_the_scores_of_others(index, embedder):
    query = embedder.embed([QUERIES["poem"]])
    before = dict(index.scores(query)[0])
    index.add(card("noise", ["zzz qqq"], embedder))
    after = dict(index.scores(query)[0])
    assert {name: after[name] for name in before} == pytest.approx(before, abs=1e-6)
    index.remove("noise")
    index.remove("noise")
    assert dict(index.scores(query)[0]) == pytest.approx(before, abs=1e-6)


def test_nearest_is_the_beginning_of_all_scores(index, embedder):
    query = embedder.embed([QUERIES["german"]])
    everything = index.scores(query)[0]
    assert [each.score for each in everything] == sorted((each.score for each in everything), reverse=True)
    for count in range(1, 6):
        assert [each.name for each in index.nearest(query[0], count)] == [each.name for each in everything[:count]]


def test_hidden_and_chosen_adapters(index, embedder):
    query = embedder.embed([QUERIES["german"]])
    assert next(each.name for each in index.scores(query, hidden=["german"])[0]) == "french"
    assert {each.name for each in index.nearest(query[0], 4, among=["sql", "poem"])} == {"sql", "poem"}


def test_an_empty_index_has_no_scores(embedder):
    assert Index(embedder.name).scores(embedder.embed(["x"])) == [[]]
    assert Index(embedder.name).nearest(embedder.embed(["x"])[0], 3) == []


def test_equal_scores_come_in_the_order_of_names(embedder):
    index = Index(embedder.name)
    for name in "cab":
        index.add(card(name, ["the same"], embedder))
    assert [each.name for each in index.nearest(embedder.embed(["the same"])[0], 2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "problem"), [({"embedder": "other"}, "made by other"), ({"base_fingerprint": "?"}, "another base")]
)
def test_a_card_that_does_not_belong_is_refused(index, embedder, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        index.add(card("new", ["text"], embedder, **changes))
    assert "new" not in index


def test_a_card_of_another_length_is_refused(index, embedder):
    other = HashedNgrams(dimensions=64)
    with pytest.raises(ConfigError, match="64 dimensions"):
        index.add(card("new", ["text"], other, embedder=embedder.name))


# The rule


def scored(*scores):
    return [Scored(f"a{i}", score) for i, score in enumerate(scores)]


def test_nobody_near_is_the_base():
    assert decide([], Rule()).mode is Mode.BASE
    assert decide(scored(0.4, 0.1), Rule(least_score=0.5)).mode is Mode.BASE
    assert decide(scored(0.9, 0.88), Rule(least_margin=0.05)).mode is Mode.BASE


def test_one_that_is_near_and_alone_is_selected():
    rule = Rule(sure_score=0.7, sure_margin=0.1)
    chosen = decide(scored(0.9, 0.5, 0.4), rule)
    assert (chosen.mode, chosen.adapters, chosen.weights) == (Mode.SELECT, ("a0",), (1.0,))
    assert decide(scored(0.9, 0.85), rule).mode is Mode.MIXTURE
    assert decide(scored(0.6, 0.2), rule).mode is Mode.MIXTURE
    assert decide(scored(0.9), rule).mode is Mode.SELECT


def test_a_mixture_is_weighed_by_the_softmax_of_the_scores():
    chosen = decide(scored(0.8, 0.75, 0.7, 0.1), Rule(sure_score=0.95))
    assert chosen.adapters == ("a0", "a1", "a2")
    assert chosen.weights == pytest.approx(softmax([0.8, 0.75, 0.7], 0.05))
    assert sum(chosen.weights) == pytest.approx(1.0)
    assert chosen.weights[0] / chosen.weights[1] == pytest.approx(np.e)


def test_where_one_adapter_is_all_there_may_be_it_is_selected():
    assert decide(scored(0.6, 0.59), Rule(sure_score=0.95, top_k=1)).mode is Mode.SELECT


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_with_no_thresholds_nothing_is_abstained_from_but_what_is_against_it(scores):
    chosen = decide(scored(*sorted(scores, reverse=True)), Rule())
    assert (chosen.mode is Mode.BASE) == (max(scores) < 0)


def test_calibration_rejects_strangers_and_keeps_its_own(index, embedder):
    rule = calibrated(PROMPTS, embedder)

    def is_abstained(text):
        return decide(index.nearest(embedder.embed([text])[0], 3), rule).mode is Mode.BASE

    assert [is_abstained(text) for text in EVERYTHING] == [False] * len(EVERYTHING)
    assert [is_abstained(text) for text in ("xqzw jjkk vvb", "Рассказ о зиме", "vvk wwu", "")] == [True] * 4


def test_prompts_that_differ_in_a_number_alone_count_as_one(embedder):
    few = calibrated({name: texts[::3] for name, texts in PROMPTS.items()}, embedder)
    many = calibrated(PROMPTS, embedder)
    assert many.least_score == pytest.approx(few.least_score, abs=0.05)


def test_calibration_keeps_the_share_of_its_own_prompts_that_it_says(index, embedder):
    for own in (0.02, 0.3):
        rule = calibrated(PROMPTS, embedder, own=own)
        rejected = [decide(index.nearest(embedder.embed([t])[0], 3), rule).mode is Mode.BASE for t in EVERYTHING]
        assert np.mean(rejected) <= 2 * own + 1 / len(EVERYTHING)


def test_calibration_passes_other_settings_on_and_leaves_no_trace(embedder):
    rule = calibrated({"one": PROMPTS["sql"]}, embedder, top_k=2, temperature=0.1)
    assert (rule.top_k, rule.temperature, rule.least_margin >= 0) == (2, 0.1, True)


# Cache-aware choice


def test_the_nearest_is_chosen_where_time_costs_nothing():
    assert cheapest(scored(0.9, 0.89), lambda name: 9.0, epsilon=0.1, score_per_s=0.0).name == "a0"


def test_a_resident_one_nearly_as_good_is_preferred_but_not_a_bad_one():
    load_s = {"a0": 1.0, "a1": 0.0, "a2": 0.0}.get
    near, far = scored(0.9, 0.88, 0.1), scored(0.9, 0.1)
    assert cheapest(near, load_s, epsilon=0.05, score_per_s=0.1).name == "a1"
    assert cheapest(far, load_s, epsilon=0.05, score_per_s=10.0).name == "a0"
    assert cheapest([], load_s, epsilon=0.05, score_per_s=0.1) is None


# Tasks


def test_halving_finds_the_best_and_spends_little():
    calls = []

    def quality(adapter, start, stop):
        calls.append(stop - start)
        return -abs(int(adapter) - 11)

    ranked = tasks.halved([str(i) for i in range(32)], quality, examples=64)
    assert ranked[0] == "11"
    assert sorted(map(int, ranked)) == list(range(32))
    assert sum(calls) == 5 * 64  # log2(32) rungs of 32 adapters times 2 examples, twice as many for half as many


def test_halving_starts_over_when_its_examples_run_out():
    spans = []

    def quality(adapter, start, stop):
        spans.append((start, stop))
        return float(adapter)

    assert tasks.halved(["1", "2", "3", "4", "5"], quality, examples=5)[0] == "5"
    assert all(0 <= start < stop <= 5 for start, stop in spans)
    assert tasks.halved(["1"], quality, examples=5) == ["1"]


def test_tasks_that_share_an_adapter_add_their_weights():
    near = [Scored("t0", 0.9), Scored("t1", 0.9), Scored("t2", 0.9), Scored("t3", 0.1)]
    adapters, weights = tasks.routed(near, {"t0": "x", "t1": "y", "t2": "x", "t3": "z"}, top_k=3, temperature=0.05)
    assert adapters == ("x", "y")
    assert weights == pytest.approx((2 / 3, 1 / 3))
    assert tasks.routed([], {}, 3, 0.05) == ((), ())
