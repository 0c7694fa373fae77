"""Compression around protocols that know nothing of it: what is sent, what is seen, and what a loss leaves behind."""

import numpy as np
import pytest
from pydantic import ValidationError

from node import Context, Message, Mod, Protocol, Ref
from node.compression import BFloat16, Int8, RandomK, Stream, TopK
from node.config import TopologySection
from node.errors import ConfigError
from node.op import Spec, op
from node.packing import int8_bytes, kept_of, random_k_bytes, top_k_bytes
from node.testing import Quadratic, check_protocol, run_protocol
from node.world import Done
from protocols.dpsgd import DPSGD

FULL = TopologySection(kind="full")
SIZE = 400
MODS = [BFloat16, Int8, TopK, RandomK]


class Model(Message, name="test.compression/model/1", key=("round",)):
    round: int
    model: Ref


class Odd(Message, name="test.compression/odd/1", any_shape=True):
    part: Ref


class Note(Message, name="test.compression/note/1"):
    text: str = ""


@op
def moved(model, *, by):
    return model + by * np.arange(len(model))


def workload(nodes, size=SIZE):
    return Quadratic(nodes, np.random.default_rng(2).normal(size=(nodes, size)))


class Teller(Protocol):
    """Node 0 tells a sequence of models; the others remember what they see."""

    class Config(Protocol.Config):
        rounds: int = 3
        """Models told."""

    async def run(self, ctx: Context):
        for round in range(self.config.rounds):
            if ctx.me == 0:
                model = ctx.apply(moved, ctx.initial_model(), by=1.0 + round)
                told.append(await ctx.value(model))
                await ctx.send(ctx.peers(), Model(round=round, model=model))
            else:
                heard = await ctx.collect(Model, frm=(0,), round=round)
                seen.setdefault(ctx.me, []).append(await ctx.value(heard[0].model))
        return ctx.initial_model()


told: list = []
seen: dict[int, list] = {}


@pytest.fixture(autouse=True)
def _silence():
    told.clear()
    seen.clear()


def tell(mod, rounds=3, nodes=3, **options):
    protocol = Teller(Teller.Config(rounds=rounds))
    return run_protocol(protocol, nodes, workload=workload(nodes), topology=FULL, mods=[mod], **options)


# What is sent


@pytest.mark.parametrize(
    ("mod", "packed_bytes"),
    [
        (BFloat16(), 2 * SIZE),
        (Int8(), int8_bytes(SIZE)),
        (TopK(), top_k_bytes(SIZE, 40)),
        (RandomK(), random_k_bytes(SIZE, 40)),
        (TopK(TopK.Config(share=0.5)), top_k_bytes(SIZE, 200)),
    ],
    ids=["bf16", "int8", "top-k", "random-k", "half"],
)
def test_the_simulation_counts_what_is_packed(mod, packed_bytes):
    header_bytes = 60
    outcome = tell(mod)
    assert outcome.messages == 6
    assert 0 < outcome.bytes_sent - 6 * packed_bytes < 6 * header_bytes


@pytest.mark.parametrize("kind", MODS)
def test_all_receivers_see_the_same_and_it_is_packed_once(kind):
    few, many = (tell(kind(), nodes=nodes).tasks for nodes in (2, 6))
    for others in list(seen.values())[1:]:
        for model, other in zip(seen[1], others, strict=False):
            np.testing.assert_array_equal(model, other)
    unpacking = many - few
    assert unpacking == 3 * 4, "each further receiver unpacks three messages, and nothing is packed for it"


@pytest.mark.parametrize("kind", MODS)
def test_a_protocol_sees_models_of_its_own_kind(kind):
    tell(kind())
    for model in seen[1]:
        assert model.shape == (SIZE,)
        assert model.dtype == np.float64


def test_bf16_is_near():
    tell(BFloat16())
    for model, sent in zip(seen[1], told, strict=True):
        np.testing.assert_allclose(model, sent, rtol=2**-8)


def test_int8_is_near():
    tell(Int8())
    for model, sent in zip(seen[1], told, strict=True):
        np.testing.assert_allclose(model, sent, atol=1.001 * np.abs(sent).max() / 127)


@pytest.mark.parametrize("kind", [TopK, RandomK])
def test_few_elements_are_exact_and_the_others_as_known(kind):
    tell(kind())
    known = np.zeros(SIZE)
    for model, sent in zip(seen[1], told, strict=True):
        changed = model != known
        assert 30 <= changed.sum() <= 40  # the first element is 0, and random ones may be there already
        np.testing.assert_allclose(model[changed], sent[changed], rtol=1e-6)
        known = model


def test_what_was_not_told_stays_in_the_residual_until_it_is():
    """Error feedback: a model that stays is known after 1/share messages."""

    class Still(Teller):
        async def run(self, ctx):
            self.config = self.config.model_copy(update={"rounds": 10})
            return await super().run(ctx)

    @op
    def same(model, *, by):
        return model + np.arange(len(model))

    global moved
    before, moved = moved, same
    try:
        run_protocol(Still(), 2, workload=workload(2), topology=FULL, mods=[TopK()])
    finally:
        moved = before
    errors = [np.abs(model - sent).max() for model, sent in zip(seen[1], told, strict=True)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0
    assert errors[-1] == 0


def test_refreshing_sends_the_whole():
    tell(TopK(TopK.Config(refresh_every=3)), rounds=6)
    exact = [bool(np.array_equal(model, sent)) for model, sent in zip(seen[1], told, strict=True)]
    assert exact == [False, False, True, False, False, True]


def test_without_refreshing_it_is_never_sent_whole():
    outcome = tell(TopK(TopK.Config(refresh_every=0)), rounds=4)
    assert outcome.bytes_sent < 8 * (top_k_bytes(SIZE, 40) + 60)


# What is left alone


class Varied(Protocol):
    async def run(self, ctx: Context):
        if ctx.me == 0:
            await ctx.send(1, Odd(part=ctx.apply(moved, ctx.initial_model(), by=1 / 3)))
            await ctx.send(1, Note(text="hello"))
            return
        await ctx.collect(Note, frm=(0,))
        odd = await ctx.collect(Odd, frm=(0,))
        told.append(await ctx.value(odd[0].part))


@pytest.mark.parametrize("kind", MODS)
def test_messages_of_any_shape_and_without_models_pass_as_they_are(kind):
    run_protocol(Varied(), 2, workload=workload(2), mods=[kind()])
    np.testing.assert_array_equal(told[0], 1 / 3 * np.arange(SIZE))


class All(Message, name="test.compression/all/1", whole=True):
    model: Ref


class Told(Protocol):
    async def run(self, ctx: Context):
        if ctx.me == 0:
            await ctx.send(1, All(model=ctx.apply(moved, ctx.initial_model(), by=1 / 3)))
            return
        told.append(await ctx.value((await ctx.collect(All, frm=(0,)))[0].model))


@pytest.mark.parametrize("kind", MODS)
def test_a_whole_model_is_told_to_the_last_bit(kind):
    """Its receiver has nothing to put a few elements into."""
    run_protocol(Told(), 2, workload=workload(2), mods=[kind()])
    np.testing.assert_array_equal(told[0], 1 / 3 * np.arange(SIZE))


# What travels is declared


@pytest.mark.parametrize("kind", MODS)
def test_packed_shapes_are_declared(kind):
    model = Spec((SIZE,))
    shapes = kind().carried(frozenset({model}))
    packed = shapes - {model}
    assert model in shapes
    assert [spec.dtype for spec in packed] == ["uint8"]
    assert kind().carried(shapes) == shapes, "declaring twice adds nothing"


def test_parts_that_would_look_alike_are_refused():
    parts = frozenset({Spec((9950,)), Spec((10_000,))})
    with pytest.raises(ConfigError, match=r"mods.share: models of 9950 and 10000 elements would look alike"):
        TopK(TopK.Config(share=0.01)).carried(parts)
    assert len(TopK(TopK.Config(share=0.1)).carried(parts)) == 4


class Liar(Mod):
    """Sends bytes of a size that nobody packs."""

    def outgoing(self, ctx, to, message):
        return Model(round=message.round, model=ctx.apply(cut, message.model))


@op(spec=lambda inputs, static: inputs[0]._replace(shape=(7,)))
def cut(model):
    return model[:7]


def test_other_shapes_are_refused_still():
    with pytest.raises(Exception, match="waits"):
        run_protocol(Teller(), 2, workload=workload(2), topology=FULL, mods=[TopK(), Liar()])
    assert seen == {}


# A node's memory


def mod_of(config=None):
    mod = TopK(config)
    mod.carried(frozenset({Spec((SIZE,))}))
    return mod


def test_what_was_told_and_heard_comes_back_from_a_checkpoint():
    mod, again = mod_of(), mod_of()
    stream = Stream(3, 1, "dotted.name/model/1")
    mod._told[stream], mod._heard[Stream(5, 0, "a/1")], mod._since[stream] = "a ref", "another", 7
    again.restored(mod.state())
    assert (again._told, again._heard, again._since) == (mod._told, mod._heard, mod._since)


class Keeping(Protocol):
    """Node 0 tells the same model ever again; node 1 keeps a checkpoint and goes on from it half way."""

    async def run(self, ctx: Context):
        model = ctx.apply(moved, ctx.initial_model(), by=1.0)
        for round in range(10):
            if ctx.me == 0:
                await ctx.send(1, Model(round=round, model=model))
                continue
            heard = await ctx.collect(Model, frm=(0,), round=round)
            seen.setdefault(1, []).append(await ctx.value(heard[0].model))
            if round == 4:
                kept = {}
                ctx._world.save = lambda ctx, state, kept=kept: Done(kept.update(state))
                ctx._world.load = lambda ctx, kept=kept: kept
                await ctx.checkpoint(round=round)
                mod = ctx._wrapping.mods[0]
                mod.carried(frozenset({ctx.initial_model().spec}))  # as a new life begins
                assert not mod._heard
                ctx._has_saved = False
                assert ctx.restore() == {"round": 4}, "what is the mod's is not the protocol's"
        return model


def test_a_restored_node_knows_what_it_had_been_told():
    run_protocol(Keeping(), 2, workload=workload(2), topology=FULL, mods=[TopK()])
    errors = [int((model != np.arange(SIZE)).sum()) for model in seen[1]]
    assert errors == [359, 319, 279, 239, 199, 159, 119, 79, 39, 0]


def test_a_part_whose_beginning_was_lost_begins_with_zeros():
    """Both ends start a stream of parts with a whole one; who has missed it takes the rest as zero."""

    class Alone:
        def __init__(self):
            self.calls = []

        def initial_model(self):
            return Named(Spec((SIZE,)), 0)

        def apply(self, op, *refs, **static):
            self.calls.append(op.name.split(":")[1])
            return Named(refs[0].spec, len(self.calls))

    class Named:
        def __init__(self, spec, id):
            self.spec, self.id = spec, id

    part = Named(Spec((100,)), -1)
    stream, sender, receiver = Stream(1, 0, "part/1"), mod_of(), mod_of()
    alone = Alone()
    assert sender.pack(alone, stream, part) is part
    assert alone.calls == []
    packed = sender.pack(alone, stream, part)
    assert alone.calls == ["top_k_packed", "top_k_unpacked"]
    receiver.unpack(alone, stream, packed, part.spec)
    assert alone.calls[2:] == ["nothing", "top_k_unpacked"]


# Learning


@pytest.mark.parametrize("kind", MODS)
def test_learning_goes_on_under_compression(kind):
    dense = run_protocol(DPSGD(DPSGD.Config(rounds=60)), 4, workload=workload(4), topology=FULL)
    packed = run_protocol(DPSGD(DPSGD.Config(rounds=60)), 4, workload=workload(4), topology=FULL, mods=[kind()])
    assert packed.bytes_sent < 0.55 * dense.bytes_sent
    optimum = workload(4).optimum
    start = np.linalg.norm(optimum)
    for model in packed.models.values():
        assert np.linalg.norm(model - optimum) < 0.5 * start


@pytest.mark.parametrize("kind", MODS)
def test_runs_are_the_same_again_and_under_every_window(kind):
    check_protocol(DPSGD(DPSGD.Config(rounds=5)), 4, workload=workload(4, 40), mods=[kind()])


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 0.8}, {"refresh_every": -1}, {"rate": 1}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        TopK.Config(**wrong)


def test_a_share_keeps_one_element_at_least():
    assert kept_of(3, 0.01) == TopK(TopK.Config(share=0.01)).kept(3) == 1
