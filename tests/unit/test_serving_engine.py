"""The engine: what a request gets is what transformers and PEFT give it alone, whoever else is in its batch."""

import json
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from node.adapters.fingerprint import base_fingerprint
from node.adapters.keeping import keep
from node.adapters.loading import load
from node.errors import ConfigError, Unreachable
from node.learn.choices import Choices
from node.selection.deciding import Mode
from node.serving.engine import PIECE_TOKENS, Engine, slot_bytes
from node.serving.keyvalues import KeyValues
from node.serving.model import load_model
from node.serving.registry import Named
from node.serving.sampling import Sampler, Sampling
from node.serving.selecting import Selector
from node.serving.writing import Writer
from node.store.objects import Store
from node.testbed.questions import profile
from node.testbed.tokens import BOS, EOS, tokenizer
from peft_folders import with_peft
from served import NAMES, save_adapters, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = Sampling()
PROMPTS = [[BOS, 52, 50, 61], [BOS, 49], [BOS, *range(60, 90)], [BOS, 55, 56, 57, 58, 61]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    save_model(root / "base")
    save_adapters(root / "base", root / "adapters")
    return root


@pytest.fixture(scope="module")
def language(folder):
    return load_model(folder / "base")


@pytest.fixture
def engine(folder, language):
    """With the three adapters in slots 0, 1 and 2."""
    engine = Engine(language, slots=3, places=6)
    store = Store(folder / "store")
    for slot, name in enumerate(NAMES):
        version = keep(store, folder / "adapters" / name, name, language.fingerprint)
        load(store, version, engine.stacks, slot, language.fingerprint)
    yield engine
    engine._attached.detach()


def generated(engine, row, count):
    while len(row.tokens) < count:
        engine.advance([row])
    return row.tokens


def test_greedy_tokens_are_those_of_transformers(folder, engine):
    reference = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    for prompt in PROMPTS:
        expected = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        row = engine.begin(prompt, GREEDY, {})
        assert generated(engine, row, len(prompt) + 20) == expected[0].tolist()
        engine.end(row)


def test_logits_of_a_mixed_batch_are_those_of_peft_alone(folder, engine):
    peft = with_peft(
        LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32),
        [folder / "adapters" / name for name in NAMES],
    )
    chosen = [{0: 1.0}, {}, {2: 1.0}, {1: 1.0}]
    rows = [engine.begin(prompt, GREEDY, slots) for prompt, slots in zip(PROMPTS, chosen, strict=True)]
    for _ in range(12):
        before = [list(row.tokens) for row in rows]
        found = engine.logits(rows)
        for index, (row, tokens) in enumerate(zip(rows, before, strict=True)):
            with torch.inference_mode():
                if row.slots:
                    peft.set_adapter(NAMES[next(iter(row.slots))])
                    alone = peft(torch.tensor([tokens])).logits[0, -1]
                else:
                    with peft.disable_adapter():
                        alone = peft(torch.tensor([tokens])).logits[0, -1]
            assert (found[index] - alone).abs().max() < 1e-4
            row.tokens.append(int(alone.argmax()))


def test_requests_join_and_leave_and_nobody_notices(engine):
    alone = []
    for index, prompt in enumerate(PROMPTS):
        row = engine.begin(prompt, GREEDY, {index % 3: 1.0})
        alone.append(list(generated(engine, row, len(prompt) + 24)))
        engine.end(row)
    running, found, waiting = [], {}, list(enumerate(PROMPTS))
    for step in range(80):
        if waiting and step % 5 == 0:
            index, prompt = waiting.pop(0)
            running.append((index, engine.begin(prompt, GREEDY, {index % 3: 1.0})))
        if running:
            engine.advance([row for _, row in running])
        for index, row in [each for each in running if len(each[1].tokens) == len(PROMPTS[each[0]]) + 24]:
            found[index] = list(row.tokens)
            engine.end(row)
            running.remove((index, row))
    assert [found[index] for index in range(4)] == alone
    assert engine.kept.free == engine.places


def test_a_place_that_was_used_shows_nothing_of_before(engine):
    first = engine.begin(PROMPTS[0], GREEDY, {})
    expected = list(generated(engine, first, 20))
    engine.end(first)
    other = engine.begin(PROMPTS[2], GREEDY, {1: 1.0})
    generated(engine, other, 100)
    engine.end(other)
    again = engine.begin(PROMPTS[0], GREEDY, {})
    assert again.place == first.place
    assert generated(engine, again, 20) == expected


def test_a_long_prompt_is_read_in_pieces_and_to_the_end_of_the_context(folder, tmp_path):
    base = save_model(tmp_path / "long", context=3 * PIECE_TOKENS)
    engine = Engine(load_model(base), slots=1, places=2)
    prompt = [BOS, *(np.arange(2 * PIECE_TOKENS + 5) % 200).tolist()]
    long, short = engine.begin(prompt, GREEDY, {}), engine.begin([BOS, 5], GREEDY, {})
    assert engine.advance([long, short]) == [short]
    assert long.read == PIECE_TOKENS
    assert engine.advance([long, short]) == [short]
    assert engine.advance([long]) == [long]
    generated(engine, long, 3 * PIECE_TOKENS)
    reference = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([long.tokens[:-1]])).logits[0].argmax(dim=1)
    assert long.tokens[len(prompt) :] == expected[len(prompt) - 1 :].tolist()


def test_a_mixture_of_one_is_a_selection_and_one_of_two_is_between(engine):
    def logits(slots):
        row = engine.begin(PROMPTS[0], GREEDY, slots)
        found = engine.logits([row])[0]
        engine.end(row)
        return found

    rows = [engine.begin(PROMPTS[0], GREEDY, slots) for slots in ({0: 1.0}, {0: 0.5, 1: 0.5}, {})]
    mixed = engine.logits(rows)
    for row in rows:
        engine.end(row)
    assert torch.allclose(mixed[0], logits({0: 1.0}), atol=1e-5)
    assert torch.allclose(mixed[1], logits({0: 0.5, 1: 0.5}), atol=1e-5)
    assert torch.allclose(mixed[2], logits({}), atol=1e-5)
    assert not torch.allclose(mixed[1], mixed[0], atol=1e-3)


def test_what_an_adapter_fails_with_leaves_the_request_as_it_was(engine):
    def wait(layer):
        raise Unreachable(f"layer {layer} does not come")

    row = engine.begin(PROMPTS[0], GREEDY, {0: 1.0}, [wait])
    with pytest.raises(Unreachable):
        engine.advance([row])
    assert row.read == 0
    row.waits = ()
    fresh = engine.begin(PROMPTS[0], GREEDY, {0: 1.0})
    assert generated(engine, row, 12) == generated(engine, fresh, 12)


def test_kernels_are_chosen_by_what_was_measured_and_change_nothing(engine, tmp_path):
    def tokens():
        rows = [engine.begin(prompt, GREEDY, {index % 3: 1.0}) for index, prompt in enumerate(PROMPTS)]
        for _ in range(10):
            engine.advance(rows)
        for row in rows:
            engine.end(row)
        return [row.tokens for row in rows]

    before, ticks = tokens(), count()
    engine.choose_kernels(Choices(tmp_path / "kernels.json"), lambda: next(ticks))
    assert (tmp_path / "kernels.json").exists()
    assert tokens() == before


def test_a_slot_takes_what_one_adapter_of_the_highest_rank_does(language, engine):
    assert slot_bytes(language) == (engine.stacks.size_bytes - 4 * 4) / 4


def test_adapters_are_selected_by_their_prompts_alone():
    prompts = {name: tuple(profile(name)) for name in ("de", "es", "fr")}
    selector = Selector(Named(name, name * 32, "", texts) for name, texts in prompts.items())
    assert selector.choose("Spell out 31 in Spanish").adapters == ("es",)
    assert selector.choose("Compose a melody").mode is Mode.BASE
    assert len(selector.mix("Spell out 31 in Spanish", 2).adapters) == 2
    selector.remove("es")
    selector.put(Named("lonely", "0" * 64, "", ("one prompt",)))
    assert (len(selector), "es" in selector.choose("Spell out 31 in Spanish").adapters) == (2, False)
    assert Selector().choose("anything").mode is Mode.BASE


def test_places_run_out_in_order():
    kept = KeyValues(2, 8)
    assert [kept.take(), kept.take(), kept.free] == [0, 1, 0]
    with pytest.raises(IndexError):
        kept.take()
    kept.give_back(0)
    assert kept.take() == 0


def test_an_engine_needs_a_place(language):
    with pytest.raises(ConfigError, match="places: 0"):
        Engine(language, slots=1, places=0)


# Models


def test_a_model_says_what_it_is(folder, language):
    assert language.fingerprint == base_fingerprint(folder / "base")
    assert (language.context_tokens, language.end_tokens, language.width) == (128, frozenset({EOS}), 32)
    assert load_model(folder / "base", 40).context_tokens == 40


def test_no_model_is_an_error_of_one_line(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"no \.safetensors file"):
        load_model(tmp_path)
    base = save_model(tmp_path / "broken")
    (base / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="no causal model"):
        load_model(base)


def test_windowed_attention_is_refused(tmp_path):
    base = save_model(tmp_path / "windowed")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "sliding_window": 16}))
    with pytest.raises(ConfigError, match="attend to windows"):
        load_model(base)


# Sampling


def test_equal_seeds_draw_equal_tokens_and_the_nucleus_holds():
    logits = torch.tensor([0.0, 3.0, 2.9, -5.0])

    def drawn(**how):
        sampler = Sampler(Sampling(temperature=1.0, **how))
        return [sampler.draw(logits) for _ in range(200)]

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert set(drawn(top_p=0.9)) == {1, 2}
    assert set(drawn(top_p=0.0)) == {1}
    shares = np.bincount(drawn(seed=3), minlength=4) / 200
    assert np.abs(shares - torch.softmax(logits, 0).numpy()).max() < 0.12


def test_a_low_temperature_is_nearly_greedy():
    logits = torch.tensor([0.0, 1.0, 0.5])
    assert Sampler(Sampling()).is_greedy
    cold = Sampler(Sampling(temperature=0.01))
    assert not cold.is_greedy
    assert {cold.draw(logits) for _ in range(50)} == {1}


def test_what_is_drawn_does_not_depend_on_the_batch(engine):
    def text(others):
        rows = [engine.begin(PROMPTS[0], Sampling(1.0, 0.9, seed=7), {0: 1.0})]
        rows += [engine.begin(PROMPTS[each], Sampling(1.5, 1.0, seed=each), {each % 3: 1.0}) for each in others]
        for _ in range(20):
            engine.advance(rows)
        for row in rows:
            engine.end(row)
        return rows[0].tokens

    assert text([]) == text([1]) == text([3, 2, 1])


# Text


def written(text, stops=()):
    writer, shown = Writer(tokenizer(), stops), []
    for byte in text.encode():
        shown.append(writer.add(byte))
        if writer.is_stopped:
            break
    return [*shown, writer.finish()], writer


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="�"), max_size=30))
def test_pieces_add_up_to_the_text(text):
    pieces, _ = written(text)
    assert "".join(pieces) == text


def test_half_a_letter_is_not_shown():
    pieces, _ = written("aß€")
    assert pieces == ["a", "", "ß", "", "", "€", ""]


def test_bytes_that_stay_no_letter_come_in_the_end():
    writer = Writer(tokenizer())
    assert writer.add(0xE2) == ""
    assert writer.finish() == "�"


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_answer_ends_before_the_first_stop_and_shows_nothing_of_it(text, stops):
    pieces, writer = written(text, stops)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    shown = "".join(pieces)
    assert writer.is_stopped == bool(ends)
    if ends:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
    else:
        assert shown == text


def test_a_stop_may_come_in_pieces():
    pieces, writer = written("one.. two. END more", ["END", "..."])
    assert "".join(pieces) == "one.. two. "
    assert writer.is_stopped
