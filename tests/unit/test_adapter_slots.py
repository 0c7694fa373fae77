"""Slots: what is read is never written to, versions are pinned, nothing of an earlier adapter shows through."""

import threading

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from safetensors.torch import load_file, save_file
from torch import nn

from node.adapters.attaching import Attached, linear_shapes
from node.adapters.fingerprint import base_fingerprint
from node.adapters.keeping import keep, kept, layer_bytes
from node.adapters.kernels import BASE, KERNELS, Rows
from node.adapters.loading import Loading, load
from node.adapters.slots import Held, Slots
from node.adapters.stacks import Stacks
from node.errors import ConfigError, Corrupt, DeadlineExceeded, Missing, Unreachable
from node.store.objects import Store
from peft_folders import save_adapter, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")


# Who has which slot


def test_a_slot_is_published_held_and_freed():
    slots = Slots(2)
    slot = slots.claim()
    assert slots.publish("de", "v1", slot) is None
    held = slots.hold("de")
    assert held == Held("de", "v1", 0)
    assert slots.resident() == {"de": held}
    assert (slots.holds("de"), slots.free) == (1, 1)
    assert slots.remove("de") == held
    assert slots.free == 1
    slots.let_go(held)
    assert slots.free == 2
    with pytest.raises(Missing, match="adapter 'de' is not resident"):
        slots.hold("de")


def test_a_request_ends_on_the_version_it_began_with():
    slots = Slots(2)
    slots.publish("de", "v1", slots.claim())
    old = slots.hold("de")
    assert slots.publish("de", "v2", slots.claim()) == old
    new = slots.hold("de")
    assert (old.version, new.version) == ("v1", "v2")
    assert old.slot != new.slot
    assert slots.claim() is None
    slots.let_go(old)
    assert slots.claim() == old.slot


def test_a_step_that_began_before_keeps_a_slot_and_one_that_began_after_does_not():
    slots = Slots(1)
    slots.publish("de", "v1", slots.claim())
    early = slots.begin_step()
    slots.remove("de")
    late = slots.begin_step()
    assert slots.claim() is None
    slots.end_step(early)
    assert slots.claim() == 0
    slots.end_step(late)
    assert slots.free == 0


def test_when_loading_fails_the_old_version_goes_on():
    slots = Slots(2)
    slots.publish("de", "v1", slots.claim())
    slots.give_back(slots.claim())
    assert slots.hold("de").version == "v1"
    assert slots.free == 1


def test_misuse_is_an_error():
    with pytest.raises(ConfigError, match="slots: 0"):
        Slots(0)
    slots = Slots(1)
    with pytest.raises(KeyError):
        slots.publish("de", "v1", 0)
    with pytest.raises(Missing):
        slots.remove("de")
    assert slots.holds("de") == 0


class Storm(RuleBasedStateMachine):
    """Anything may happen in any order: no slot has two owners, and what is in use is never handed out."""

    claimed, requests, steps = Bundle("claimed"), Bundle("requests"), Bundle("steps")
    COUNT = 4

    def __init__(self):
        super().__init__()
        self.slots = Slots(self.COUNT)
        self.version = 0
        self.loading, self.held, self.readers = set(), [], {}

    @rule(target=claimed)
    def claim(self):
        slot = self.slots.claim()
        if slot is not None:
            assert slot not in self.loading
            assert slot not in {held.slot for held in self.held}
            assert not any(slot in read for read in self.readers.values())
            self.loading.add(slot)
        return slot

    @rule(slot=claimed, name=st.sampled_from("abc"), succeeds=st.booleans())
    def finish(self, slot, name, succeeds):
        if slot in self.loading:
            self.loading.remove(slot)
            self.version += 1
            if succeeds:
                self.slots.publish(name, f"v{self.version}", slot)
            else:
                self.slots.give_back(slot)

    @rule(name=st.sampled_from("abc"))
    def remove(self, name):
        if name in self.slots.resident():
            self.slots.remove(name)

    @rule(target=requests, name=st.sampled_from("abc"))
    def hold(self, name):
        if name not in self.slots.resident():
            return None
        held = self.slots.hold(name)
        assert held == self.slots.resident()[name]
        self.held.append(held)
        return held

    @rule(held=requests)
    def let_go(self, held):
        if held in self.held:
            self.held.remove(held)
            self.slots.let_go(held)

    @rule(target=steps)
    def begin(self):
        step = self.slots.begin_step()
        self.readers[step] = {held.slot for held in self.held}
        return step

    @rule(step=steps)
    def end(self, step):
        if step in self.readers:
            del self.readers[step]
            self.slots.end_step(step)

    @invariant()
    def every_slot_has_one_owner(self):
        published = [held.slot for held in self.slots.resident().values()]
        assert len(published) == len(set(published))
        assert not self.loading & set(published)
        assert self.slots.free + len(self.loading) + len(published) <= self.COUNT

    def teardown(self):
        for step in list(self.readers):
            self.slots.end_step(step)
        for held in self.held:
            self.slots.let_go(held)
        for slot in self.loading:
            self.slots.give_back(slot)
        for name in self.slots.resident():
            self.slots.remove(name)
        assert self.slots.free == self.COUNT


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=40, deadline=None)


# Weights


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, a store, and versions of adapters by name."""
    root = tmp_path_factory.mktemp("world")
    model = tiny_llama()
    model.save_pretrained(root / "base")
    base = base_fingerprint(root / "base")
    store = Store(root / "store")
    kinds = {
        "large": {"rank": 8, "alpha": 64, "seed": 1},
        "small": {"rank": 2, "alpha": 6, "seed": 2, "targets": ["q_proj"], "layers_to_transform": [1]},
    }
    folders = {name: save_adapter(model, root / name, **kind) for name, kind in kinds.items()}
    versions = {name: keep(store, folder, name, base) for name, folder in folders.items()}
    return model, base, store, versions, folders


def stacks_for(world, slots=2, most_rank=8):
    return Stacks(linear_shapes(world[0]), slots, most_rank)


def put(world, stacks, name, slot):
    _, base, store, versions, _ = world
    return load(store, versions[name], stacks, slot, base)


def same(one, other, slot, other_slot):
    return all(
        torch.equal(one[name].a[slot], other[name].a[other_slot])
        and torch.equal(one[name].b[slot], other[name].b[other_slot])
        and one[name].scale[slot] == other[name].scale[other_slot]
        for name in one
    )


def test_an_adapter_is_padded_with_zeros(world):
    stacks = stacks_for(world)
    put(world, stacks, "small", 1)
    tensors = load_file(world[4]["small"] / "adapter_model.safetensors")
    q_proj = stacks["model.layers.1.self_attn.q_proj"]
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    assert torch.equal(q_proj.a[1, :2], tensors[f"{name}A.weight"])
    assert torch.equal(q_proj.b[1, :, :2], tensors[f"{name}B.weight"])
    assert not q_proj.a[1, 2:].any()
    assert not q_proj.b[1, :, 2:].any()
    assert not stacks["model.layers.0.self_attn.q_proj"].b[1].any()
    assert q_proj.scale.tolist() == [0, 3, 0]
    assert not any(stacks[module].b[slot].any() for module in stacks for slot in (0, 2))


def test_a_slot_after_a_larger_adapter_equals_a_fresh_one(world):
    used, fresh = stacks_for(world), stacks_for(world)
    put(world, used, "large", 0)
    put(world, used, "small", 0)
    put(world, fresh, "small", 1)
    assert same(used, fresh, 0, 1)
    used.clear(0)
    assert same(used, fresh, 0, 0)


def test_layers_in_any_order_make_the_same_slot(world):
    _, _, store, versions, _ = world
    artifact = kept(store, versions["large"])
    whole, pieces = stacks_for(world), stacks_for(world)
    put(world, whole, "large", 0)
    loading = Loading(pieces, 0, artifact)
    for layer in reversed(artifact.layers):
        assert not loading.is_complete
        loading.write(layer, bytearray(layer_bytes(store, artifact, layer)))
    assert loading.is_complete
    assert same(whole, pieces, 0, 0)


def test_half_precision_is_what_the_slots_have(world, tmp_path):
    model, base, store, _, folders = world
    tensors = load_file(folders["small"] / "adapter_model.safetensors")
    folder = save_adapter(model, tmp_path / "half", rank=2, alpha=4, targets=["q_proj"], layers_to_transform=[1])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(converted, folder / "adapter_model.safetensors")
        stacks = stacks_for(world)
        load(store, keep(store, folder, "half", base), stacks, 0, base)
        name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
        assert torch.equal(stacks["model.layers.1.self_attn.q_proj"].a[0, :2], converted[name].float())


def test_sizes(world):
    stacks = stacks_for(world, slots=3, most_rank=4)
    shapes = linear_shapes(world[0])
    assert stacks.size_bytes == 4 * 4 * (sum(4 * (out + inward) for out, inward in shapes.values()) + 1)
    assert len(stacks.of_layer("1")) == 7
    assert stacks.of_layer("7") == []
    with pytest.raises(ConfigError, match="slots: 0"):
        Stacks(shapes, 0, 4)


# Refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"most_rank": 4}, "adapter large: r: rank 8 is above the limit; allowed: at most 4"),
        ({"base": "0" * 64}, "adapter large: is for the base model"),
        ({"without": "up_proj"}, "no linear module 'model.layers.0.mlp.up_proj'; allowed: down_proj, gate_proj"),
        ({"shape": ("down_proj", (32, 63))}, "module model.layers.0.mlp.down_proj: 64 to 32 is not the model's shape"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_name(world, change, says):
    model, base, store, versions, _ = world
    shapes = {name: shape for name, shape in linear_shapes(model).items() if change.get("without", "?") not in name}
    wrong, shape = change.get("shape", ("?", None))
    shapes = {name: shape if wrong in name else right for name, right in shapes.items()}
    stacks = Stacks(shapes, 1, change.get("most_rank", 8))
    with pytest.raises(ConfigError) as refused:
        load(store, versions["large"], stacks, 0, change.get("base", base))
    assert says in str(refused.value)
    assert not any(stack.b.any() for stack in stacks.of_layer("0"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(world, tmp_path, value):
    model, base, store, _, _ = world
    folder = save_adapter(model, tmp_path / "bad", rank=2)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[min(tensors)][0, 0] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(Corrupt, match=r"adapter bad: tensor .* not finite"):
        load(store, keep(store, folder, "bad", base), stacks_for(world), 0, base)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ConfigError, match="no linear modules in numbered layers"):
        linear_shapes(nn.Sequential(nn.Linear(2, 2)).append(nn.ReLU())[1])


# Waiting


def test_a_layer_is_waited_for_and_no_other(world):
    _, _, store, versions, _ = world
    artifact = kept(store, versions["small"])
    loading = Loading(stacks_for(world), 0, artifact)
    with pytest.raises(DeadlineExceeded, match="layer 1 did not come within 0 s"):
        loading.wait("1", timeout_s=0)
    with pytest.raises(DeadlineExceeded):
        loading.wait("0", timeout_s=0)  # the slot may still show an earlier adapter
    waiter = threading.Thread(target=loading.wait, args=("1",))
    waiter.start()
    loading.write(artifact.layers[0], layer_bytes(store, artifact, artifact.layers[0]))
    waiter.join(timeout=30)
    assert not waiter.is_alive()
    loading.wait("0", timeout_s=0)


def test_who_waits_for_what_will_not_come_is_told(world):
    _, _, store, versions, _ = world
    artifact = kept(store, versions["large"])
    loading = Loading(stacks_for(world), 0, artifact)
    loading.write(artifact.layers[0], layer_bytes(store, artifact, artifact.layers[0]))
    loading.fail(Unreachable("the source is gone"))
    loading.wait("0")
    with pytest.raises(Unreachable, match="the source is gone"):
        loading.wait("1")
    assert not loading.is_complete


def test_wrong_bytes_are_refused_before_they_are_written(world):
    _, _, store, versions, _ = world
    artifact = kept(store, versions["large"])
    stacks = stacks_for(world)
    loading = Loading(stacks, 0, artifact)
    data = bytearray(layer_bytes(store, artifact, artifact.layers[0]))
    data[5] ^= 1
    with pytest.raises(Corrupt, match="layer 0 is damaged"):
        loading.write(artifact.layers[0], data)
    assert not any(stack.a[0].any() for stack in stacks.of_layer("0"))


def test_a_forward_pass_waits_layer_by_layer_and_computes_what_a_loaded_one_does(world):
    model, _, store, versions, _ = world
    artifact = kept(store, versions["large"])
    whole, streamed = stacks_for(world), stacks_for(world)
    put(world, whole, "large", 0)
    loading = Loading(streamed, 0, artifact)
    came = []

    def arrives_when_it_is_wanted(layer):
        wanted = next(each for each in artifact.layers if each.name == layer)
        if layer not in came:
            came.append(layer)
            loading.write(wanted, layer_bytes(store, artifact, wanted))
        loading.wait(layer, timeout_s=0)

    tokens = torch.arange(6).reshape(2, 3)
    logits = []
    for stacks, waits in ((whole, []), (streamed, [arrives_when_it_is_wanted])):
        attached = Attached(model, stacks)
        with torch.inference_mode(), attached.selecting(Rows([0, BASE]), KERNELS["segment"], waits):
            logits.append(model(tokens).logits)
        attached.detach()
    assert came == ["0", "1"]
    assert torch.equal(*logits)


def test_rows_of_the_base_alone_wait_for_nothing(world):
    model = world[0]
    attached = Attached(model, stacks_for(world))
    tokens = torch.arange(3)[None]

    def never(layer):
        raise AssertionError(layer)

    with torch.inference_mode(), attached.selecting(Rows([BASE]), KERNELS["gather"], [never]):
        found = model(tokens).logits
    attached.detach()
    with torch.inference_mode():
        assert torch.equal(found, model(tokens).logits)


# Swaps


def test_no_output_is_torn_in_a_storm_of_swaps(world, tmp_path):
    """Two threads: one publishes version after version into two slots, one computes; each output is of one version."""
    model, base, store, _, _ = world
    versions, expected = [], {}
    tokens = torch.arange(8).reshape(1, 8)
    for seed in range(3):
        folder = save_adapter(model, tmp_path / f"v{seed}", seed=seed, rank=4)
        versions.append(keep(store, folder, "swapped", base))
        stacks = stacks_for(world, slots=1)
        attached = Attached(model, stacks)
        load(store, versions[-1], stacks, 0, base)
        with torch.inference_mode(), attached.selecting(Rows([0]), KERNELS["gather"]):
            expected[versions[-1]] = model(tokens).logits
        attached.detach()
    stacks, slots, changed = stacks_for(world, slots=3), Slots(3), threading.Condition()
    slots.publish("swapped", versions[0], slots.claim())
    load(store, versions[0], stacks, 0, base)
    swaps = threading.Thread(target=swap, args=(store, stacks, slots, changed, versions, base), daemon=True)
    attached = Attached(model, stacks)
    swaps.start()
    steps = 0
    while swaps.is_alive() or not steps:
        with changed:
            held = slots.hold("swapped")
        for _ in range(3):  # a request of several steps
            with changed:
                step = slots.begin_step()
            with torch.inference_mode(), attached.selecting(Rows([held.slot]), KERNELS["gather"]):
                assert torch.equal(model(tokens).logits, expected[held.version])
            with changed:
                slots.end_step(step)
                changed.notify_all()
        with changed:
            slots.let_go(held)
            changed.notify_all()
        steps += 3
    swaps.join()
    attached.detach()
    assert slots.free == 2
    assert slots.hold("swapped").version == versions[SWAPS % 3]


SWAPS = 20


def swap(store, stacks, slots, changed, versions, base):
    for number in range(1, SWAPS + 1):
        with changed:
            changed.wait_for(lambda: slots.free)
            slot = slots.claim()
        load(store, versions[number % 3], stacks, slot, base)
        with changed:
            slots.publish("swapped", versions[number % 3], slot)
