"""LoRA in mixed batches equals PEFT's own, one adapter at a time; what is stored comes back byte for byte."""

import filecmp

import pytest
import torch

from node.adapters.attaching import Attached, linear_shapes
from node.adapters.fingerprint import base_fingerprint
from node.adapters.keeping import keep, kept, restore
from node.adapters.kernels import BASE, COMPOSITIONS, KERNELS, Composed, Rows
from node.adapters.loading import load
from node.adapters.stacks import Stacks
from node.store.objects import Store
from peft_folders import save_adapter, tiny_llama, with_peft

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {
    "small": {"rank": 4, "alpha": 8},
    "middle": {"rank": 8, "alpha": 4, "use_rslora": True},
    "large": {"rank": 16, "alpha": 32, "targets": ["q_proj", "down_proj"]},
    "upper": {"rank": 8, "alpha": 16, "layers_to_transform": [1]},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The model, the folders of adapters, and stacks with all of them in slots 0, 1, ..."""
    root = tmp_path_factory.mktemp("served")
    model = tiny_llama()
    model.save_pretrained(root / "base")
    base = base_fingerprint(root / "base")
    folders = [save_adapter(model, root / name, seed, **kind) for seed, (name, kind) in enumerate(KINDS.items())]
    store = Store(root / "store")
    stacks = Stacks(linear_shapes(model), len(folders), most_rank=16)
    versions = [keep(store, folder, folder.name, base) for folder in folders]
    for slot, version in enumerate(versions):
        load(store, version, stacks, slot, base)
    return model, folders, stacks, store, versions


@pytest.fixture(scope="module")
def expected(served):
    """The logits of one prompt a row, of PEFT with one adapter set, and of the base."""
    model, folders, *_ = served
    tokens = torch.randint(0, 64, (7, 9), generator=torch.Generator().manual_seed(1))
    slots = [0, 1, 2, 3, BASE, 1, 0]
    with torch.no_grad():
        alone = model(tokens).logits
        peft = with_peft(model, folders)
        logits = []
        for row, slot in zip(tokens, slots, strict=True):
            if slot == BASE:
                with peft.disable_adapter():
                    logits.append(peft(row[None]).logits)
            else:
                peft.set_adapter(folders[slot].name)
                logits.append(peft(row[None]).logits)
        peft.unload()
    return tokens, slots, torch.cat(logits), alone


@pytest.mark.parametrize("name", KERNELS)
def test_a_mixed_batch_equals_peft_with_one_adapter_set_for_each_request(served, expected, name):
    model, _, stacks, *_ = served
    tokens, slots, logits, alone = expected
    attached = Attached(model, stacks)
    with torch.inference_mode(), attached.selecting(Rows(slots), KERNELS[name]):
        found = model(tokens).logits
    attached.detach()
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
    assert (logits - alone).abs().amax(dim=(1, 2))[torch.tensor(slots) != BASE].min() > 0.01
    torch.testing.assert_close(found[4], alone[4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_composing_one_adapter_a_row_is_selecting_it(served, expected, name):
    model, _, stacks, *_ = served
    tokens, slots, logits, _ = expected
    attached = Attached(model, stacks)
    composed = Composed(torch.tensor(slots)[:, None], torch.ones(len(slots), 1))
    with torch.inference_mode(), attached.composing(composed, COMPOSITIONS[name]):
        found = model(tokens).logits
    attached.detach()
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


def test_a_mixture_with_weights_of_one_adapter_alone_is_that_adapter(served, expected):
    model, _, stacks, *_ = served
    tokens, slots, logits, _ = expected
    own = torch.tensor(slots)
    composed = Composed(torch.stack([(own + 1) % 4, own], dim=1), torch.tensor([[0.0, 1.0]]).repeat(len(slots), 1))
    attached = Attached(model, stacks)
    with torch.inference_mode(), attached.composing(composed, COMPOSITIONS["mixture"]):
        found = model(tokens).logits
    attached.detach()
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


def test_decoding_with_a_cache_equals_the_whole_sequence_at_once(served):
    model, _, stacks, *_ = served
    tokens = torch.randint(0, 64, (4, 6), generator=torch.Generator().manual_seed(2))
    rows = Rows([2, BASE, 0, 2])
    attached = Attached(model, stacks)
    with torch.inference_mode(), attached.selecting(rows, KERNELS["segment"]):
        whole = model(tokens).logits
        cache, steps = None, []
        for at in range(tokens.shape[1]):
            out = model(tokens[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    attached.detach()
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5)


def test_a_detached_model_is_the_base_again(served, expected):
    model, _, stacks, *_ = served
    tokens, slots, _, alone = expected
    attached = Attached(model, stacks)
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, alone, rtol=0, atol=0)
        attached.detach()
        with attached.selecting(Rows(slots), KERNELS["gather"]):
            torch.testing.assert_close(model(tokens).logits, alone, rtol=0, atol=0)


def test_folders_come_back_byte_for_byte_and_peft_reads_them(served, tmp_path):
    model, folders, _, store, versions = served
    for folder, version in zip(folders, versions, strict=True):
        copy = tmp_path / folder.name
        restore(store, kept(store, version), copy)
        names = sorted(path.name for path in folder.iterdir())
        assert names == sorted(path.name for path in copy.iterdir())
        assert filecmp.cmpfiles(folder, copy, names, shallow=False) == (names, [], [])
    again = with_peft(model, [tmp_path / folder.name for folder in folders])
    assert sorted(again.peft_config) == sorted(KINDS)
    again.unload()


def test_a_tiny_model_is_bit_equal_after_it_was_saved_and_loaded(served, tmp_path):
    model = served[0]
    model.save_pretrained(tmp_path / "copy")
    copy = type(model).from_pretrained(tmp_path / "copy")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name]), name
    assert base_fingerprint(tmp_path / "copy") == kept(served[3], served[4][0]).base_fingerprint
