"""The test bed on disk: trained once, whole, and as transformers and PEFT read it. A small one, trained briefly."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.adapters.attaching import Attached, linear_shapes
from node.adapters.directory import read_directory
from node.adapters.fingerprint import base_fingerprint
from node.adapters.keeping import keep
from node.adapters.kernels import BASE, Composed, mixture
from node.adapters.loading import load
from node.adapters.stacks import Stacks
from node.errors import ConfigError
from node.store.objects import Store
from node.testbed import preparing
from node.testbed.judging import bits_per_byte, composing, exact, selecting, written
from node.testbed.preparing import prepare
from node.testbed.questions import divided
from node.testbed.recipe import Recipe
from node.testbed.spelling.languages import SERVED, spell
from node.testbed.tokens import prompt, text
from peft_folders import with_peft

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Recipe(hidden=32, layers=1, heads=2, base_steps=60, base_rows=16, adapter_steps=60, adapter_rows=4, judged=6)
TINY = Recipe(hidden=8, layers=1, heads=2, base_steps=4, base_rows=2, adapter_steps=4, adapter_rows=1, judged=2)
LANGUAGES = list(SERVED)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small test bed, and the steps that training told of."""
    folder, told = tmp_path_factory.mktemp("beds"), []
    bed = prepare(folder, recipe=SMALL, progress=lambda *step: told.append(step))
    return bed, told


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    """Its model with all adapters loaded from a store, language i in slot i."""
    bed, _ = trained
    model = AutoModelForCausalLM.from_pretrained(bed.base).eval()
    base, store = base_fingerprint(bed.base), Store(tmp_path_factory.mktemp("served"))
    stacks = Stacks(linear_shapes(model), len(LANGUAGES), SMALL.rank)
    for slot, (language, folder) in enumerate(bed.adapters.items()):
        load(store, keep(store, folder, language, base), stacks, slot, base)
    attached = Attached(model, stacks)
    yield model, attached
    attached.detach()


def test_training_tells_how_far_it_is(trained):
    _, told = trained
    assert told == [("base", step, 60) for step in range(1, 61)] + [("adapters", step, 60) for step in range(1, 61)]


def test_its_folders_are_those_of_transformers_and_peft(trained):
    bed, _ = trained
    model = AutoModelForCausalLM.from_pretrained(bed.base)
    assert AutoTokenizer.from_pretrained(bed.base)("12=").input_ids == prompt(12)
    assert list(bed.adapters) == LANGUAGES
    for folder in bed.adapters.values():
        settings = read_directory(folder).settings
        assert (settings.rank, settings.scale) == (SMALL.rank, SMALL.alpha / SMALL.rank)
    theirs = with_peft(model, list(bed.adapters.values()))
    assert sorted(theirs.peft_config) == sorted(LANGUAGES)


def test_what_was_trained_in_mixed_batches_is_what_peft_serves_alone(trained, served):
    bed, _ = trained
    model, attached = served
    tokens = torch.tensor([prompt(4217), prompt(9999)])
    theirs = with_peft(AutoModelForCausalLM.from_pretrained(bed.base), list(bed.adapters.values()))
    for slot, language in enumerate(LANGUAGES):
        theirs.set_adapter(language)
        with torch.inference_mode(), selecting(attached, [slot, slot])([0, 1]):
            ours = model(tokens).logits
            torch.testing.assert_close(ours, theirs(tokens).logits, rtol=0, atol=1e-5)


def test_adapters_are_less_surprised_by_their_own_language_than_the_base_and_than_others(served):
    model, attached = served
    numbers = divided().judging[:12]
    for place, language in enumerate(LANGUAGES):
        bits = [
            bits_per_byte(model, numbers, language, selecting(attached, [slot] * len(numbers)))
            for slot in (BASE, *range(len(LANGUAGES)))
        ]
        assert min(bits) == bits[1 + place]
    assert bits_per_byte(model, numbers, "de") == pytest.approx(bits_at_base(model, numbers, "de"), rel=1e-4)


def bits_at_base(model, numbers, language):
    """The definition, number by number."""
    total, count = 0.0, 0
    for number in numbers:
        words = [*spell(language, number).encode(), 258]
        asked = prompt(number)
        with torch.inference_mode():
            logits = model(torch.tensor([asked + words])).logits[0].log_softmax(-1)
        total -= sum(float(logits[len(asked) - 1 + place, word]) for place, word in enumerate(words))
        count += len(words)
    return total / count / math.log(2)


def test_what_is_written_in_a_mixed_batch_is_what_is_written_alone(served):
    model, attached = served
    numbers, slots = [7, 4217, 23, 8, 1005], [0, 3, BASE, 7, 3]
    together = written(model, numbers, selecting(attached, slots))
    alone = [written(model, [each], selecting(attached, [slot]))[0] for each, slot in zip(numbers, slots, strict=True)]
    assert together == alone
    assert written(model, [23]) == [together[2]]
    composed = Composed(torch.tensor(slots)[:, None].repeat(1, 2), torch.full((5, 2), 0.5))
    assert written(model, numbers, composing(attached, composed, mixture)) == together


def test_writing_is_greedy_and_as_generate_does_it(served):
    model, _ = served
    found = model.generate(torch.tensor([prompt(305)]), max_new_tokens=40, do_sample=False)
    assert text(found[0, len(prompt(305)) :].tolist()).startswith(written(model, [305])[0][:30])


def test_exactly_right_is_right():
    assert exact(["zwölf", "douze", "dodici"], [12, 12, 13], ["de", "fr", "it"]) == 2 / 3


def test_scores_are_shares_by_language(trained):
    scores = trained[0].scores
    for shares in scores:
        assert list(shares) == LANGUAGES
        assert all(0 <= share <= 1 for share in shares.values())


# On disk


def test_a_second_time_nothing_is_trained(trained, monkeypatch):
    bed, _ = trained
    monkeypatch.setattr(preparing, "train_base", None)
    assert prepare(bed.folder.parent, recipe=SMALL) == bed


def test_another_seed_or_recipe_has_another_folder(trained):
    bed, _ = trained
    assert bed.folder.name == f"testbed-{SMALL.digest(0)}"
    assert sorted(path.name for path in bed.folder.parent.iterdir()) == [bed.folder.name]
    summary = json.loads((bed.folder / "testbed.json").read_text())
    assert (summary["seed"], summary["recipe"]["base_steps"]) == (0, 60)


def test_a_training_that_ends_early_leaves_nothing(tmp_path):
    def stop(what, step, steps):
        if what == "adapters":
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, recipe=TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_two_that_train_at_once_end_with_one(trained, tmp_path):
    """Another process finishes first: what it has made stays."""
    bed, _ = trained
    place = tmp_path / f"testbed-{TINY.digest(0)}"

    def overtake(what, step, steps):
        if what == "adapters" and step == steps:
            shutil.copytree(bed.folder, place)

    found = prepare(tmp_path, recipe=TINY, progress=overtake)
    assert found.scores == bed.scores
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_a_folder_that_was_damaged_is_made_again(tmp_path):
    first = prepare(tmp_path, recipe=TINY)
    weights = (first.base / "model.safetensors").read_bytes()
    (first.folder / "testbed.json").unlink()
    again = prepare(tmp_path, recipe=TINY)
    assert (again.base / "model.safetensors").read_bytes() == weights
    assert again == first


def test_training_does_not_depend_on_what_was_drawn_before_and_leaves_no_trace(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = prepare(tmp_path / "one", recipe=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    other = prepare(tmp_path / "other", recipe=TINY)
    for path in ("base/model.safetensors", "adapters/de/adapter_model.safetensors"):
        assert (one.folder / path).read_bytes() == (other.folder / path).read_bytes()


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"):
        prepare(tmp_path / "file" / "below", recipe=SMALL)


def test_every_number_is_judged_with_the_words_of_its_language():
    assert exact([spell("sv", number) for number in (1, 2)], [1, 2], ["sv", "sv"]) == 1
