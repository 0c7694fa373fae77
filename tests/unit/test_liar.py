"""The mods of Byzantine nodes, under real protocols and the virtual clock."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from node import Context, Message, Mod, Protocol, Ref, op
from node.attack.byzantine import ATTACKS
from node.attack.liar import Board, Boost, Byzantine, Witness, boosted
from node.config import TopologySection
from node.errors import ConfigError
from node.learn.robust import nonfinite, robust_mix
from node.learn.workers import find
from node.op import Spec
from node.testing import Quadratic, check_op, run_protocol

NODES, LIARS = 6, (1, 4)


class Model(Message, name="test.liar/model/1", key=("round",)):
    round: int
    model: Ref


@op
def start(initial, *, node):
    return torch.full((4,), float(node + 1), dtype=torch.float64)


class InTensors(Quadratic):
    """Its values are tensors, as those of real models are."""

    def __init__(self, nodes):
        super().__init__(nodes)
        for name in ("init", "train", "mix"):
            setattr(self, name, in_tensors(getattr(self, name)))


def in_tensors(op):
    def solve(task):
        arrays = tuple([tensor.numpy() for tensor in task.inputs])
        return torch.from_numpy(np.array(op.solve(task._replace(inputs=arrays))))

    return dataclasses.replace(op, solve=solve)


class Exchange(Protocol):
    """Everyone tells everyone its model, and mixes what it has heard as ``mixing`` says; notes what it heard."""

    class Config(Protocol.Config):
        rounds: int = 1
        """Exchanges."""
        rule: str = ""
        """Robust rule; empty: the mean."""

    async def run(self, ctx: Context):
        model = ctx.apply(start, ctx.initial_model(), node=ctx.me)
        for round in range(self.config.rounds):
            model = await ctx.train(model)
            await ctx.send(ctx.neighbours(round), Model(round=round, model=model))
            messages = await ctx.collect(Model, frm=ctx.sources(round), round=round)
            models = [message.model for message in messages.values()]
            for sender, message in messages.items():
                heard[ctx.me, sender, round] = (await ctx.value(message.model)).numpy()
            trained[ctx.me, round] = (await ctx.value(model)).numpy()
            dropped[ctx.me] = await ctx.value(ctx.apply(nonfinite, model, *models))
            if self.config.rule:
                model = ctx.apply(robust_mix, model, *models, rule=self.config.rule, f=len(LIARS))
            else:
                model = ctx.mix([model, *models])
        return model


heard: dict = {}
trained: dict = {}
dropped: dict = {}


@pytest.fixture(autouse=True)
def _clear():
    for seen in (heard, trained, dropped):
        seen.clear()


def simulate(attack, mods=(), board=None, rounds=1, rule="", **config):
    """The final models, with a liar's mod on every node: it acts on liars alone."""
    liar = Byzantine(Byzantine.Config(attack=attack, byzantine=LIARS, **config), board)
    return exchange([liar, *mods], rounds=rounds, rule=rule)


def exchange(mods, **config):
    protocol, topology = Exchange(Exchange.Config(**config)), TopologySection(kind="full")
    outcome = run_protocol(protocol, NODES, workload=InTensors(NODES), topology=topology, mods=mods)
    return {node: model.numpy() for node, model in outcome.models.items()}


def from_liars(round=0):
    return {key: value for key, value in heard.items() if key[1] in LIARS and key[0] not in LIARS and key[2] == round}


def honest_mean(round):
    return np.mean([trained[node, round] for node in range(NODES) if node not in LIARS], axis=0)


# What is lied about, and by whom


def test_only_liars_lie_and_their_own_model_stays_true():
    simulate("sign-flip")
    for (to, sender, round), value in heard.items():
        sign = -1 if sender in LIARS else 1
        assert np.array_equal(value, sign * trained[sender, round]), (to, sender)


def test_everyone_is_told_the_same_lie():
    simulate("gaussian", sigma=5.0)
    for liar in LIARS:
        told = {value.tobytes() for (_, sender, _), value in heard.items() if sender == liar}
        assert len(told) == 1
    assert not np.array_equal(heard[0, 1, 0], heard[0, 4, 0]), "but each liar draws noise of its own"


def test_or_each_something_else():
    simulate("gaussian", sigma=5.0, per_receiver=True)
    assert len({value.tobytes() for (_, sender, _), value in heard.items() if sender == 1}) == NODES - 1


def test_each_round_has_a_lie_of_its_own():
    simulate("gaussian", rounds=3)
    assert len({heard[0, 1, round].tobytes() for round in range(3)}) == 3


def test_two_runs_tell_the_same_lies():
    first = simulate("gaussian", rounds=2)
    second = simulate("gaussian", rounds=2)
    assert all(np.array_equal(first[node], second[node]) for node in range(NODES))


class Parts(Message, name="test.liar/parts/1", key=("round",), any_shape=True):
    round: int
    core: Ref
    heads: dict[str, Ref]
    kept: Ref


@op(spec=lambda inputs, static: Spec((2,), inputs[0].dtype))
def half(model, *, of):
    return model[2 * of : 2 * of + 2]


@op(spec=lambda inputs, static: Spec(inputs[0].shape, "int32"))
def counted(model):
    return model.to(torch.int32)


class InParts(Exchange):
    """Sends a core, a head under its number, and whole numbers; notes what came of each."""

    async def run(self, ctx: Context):
        model = ctx.apply(start, ctx.initial_model(), node=ctx.me)
        for round in range(self.config.rounds):
            core, head, kept = ctx.apply(half, model, of=0), ctx.apply(half, model, of=1), ctx.apply(counted, model)
            mine = Parts(round=round, core=core, heads={str(ctx.me % 2): head}, kept=kept)
            await ctx.send(ctx.neighbours(round), mine)
            for sender, told in (await ctx.collect(Parts, frm=ctx.sources(round), round=round)).items():
                values = await ctx.values([told.core, *told.heads.values(), told.kept])
                heard[ctx.me, sender, round] = [value.tolist() for value in values]
        return model


def in_parts(attack, rounds=1, **config):
    liar = Byzantine(Byzantine.Config(attack=attack, byzantine=LIARS, **config))
    protocol, topology = InParts(InParts.Config(rounds=rounds)), TopologySection(kind="full")
    run_protocol(protocol, NODES, workload=InTensors(NODES), topology=topology, mods=[liar])


def test_all_weights_of_a_message_are_lied_about_wherever_they_are_and_nothing_else():
    in_parts("sign-flip")
    for (_, sender, _), (core, head, kept) in heard.items():
        sign = -1.0 if sender in LIARS else 1.0
        assert core == head == [sign * (sender + 1)] * 2
        assert kept[0] == sender + 1


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"alie"}))
def test_whole_numbers_harm_no_attack(attack):
    in_parts(attack, rounds=2)
    assert len(heard) == NODES * (NODES - 1) * 2


def test_everyone_is_told_the_same_lie_of_each_part():
    in_parts("gaussian")
    for liar in LIARS:
        told = [heard[to, liar, 0] for to in range(NODES) if to != liar]
        assert all(each == told[0] for each in told)


def test_a_liar_knows_others_by_what_they_have_in_the_same_place():
    in_parts("ipm", rounds=2, epsilon=1.0)
    honest = [node for node in range(NODES) if node not in LIARS]
    core, head, _ = heard[0, 1, 1]
    assert core == [pytest.approx(-np.mean([node + 1 for node in honest]))] * 2
    assert head == [pytest.approx(-np.mean([node + 1 for node in honest if node % 2 == 1]))] * 2


# What a liar knows


def test_before_it_has_heard_anybody_a_liar_knows_its_own_model():
    simulate("ipm", epsilon=0.5)
    assert all(np.allclose(value, -0.5 * trained[sender, 0]) for (_, sender, _), value in from_liars().items())


def test_later_it_knows_what_the_honest_have_told_it():
    simulate("ipm", epsilon=0.5, rounds=2)
    told = from_liars(round=1)
    assert told
    assert all(np.allclose(value, -0.5 * honest_mean(0)) for value in told.values())


def test_an_omniscient_liar_knows_this_round_s_models_of_all_honest_nodes():
    board = Board()
    simulate("ipm", mods=[Witness(board)], board=board, epsilon=0.5, rounds=2, omniscient=True)
    for round in range(2):
        assert all(np.allclose(value, -0.5 * honest_mean(round)) for value in from_liars(round).values())


def test_without_the_flag_a_board_is_not_read():
    board = Board()
    simulate("ipm", mods=[Witness(board)], board=board, epsilon=0.5)
    assert all(np.allclose(value, -0.5 * trained[sender, 0]) for (_, sender, _), value in from_liars().items())


def test_dissensus_tells_each_receiver_what_keeps_it_where_it_is():
    board = Board()
    simulate("dissensus", mods=[Witness(board)], board=board, omniscient=True)
    for node in set(range(NODES)) - set(LIARS):
        mixed = np.mean([trained[node, 0], *[heard[node, peer, 0] for peer in range(NODES) if peer != node]], axis=0)
        assert np.allclose(mixed, trained[node, 0], atol=1e-5)


def test_a_two_faced_liar_divides_its_receivers_by_number():
    simulate("two-faced", rounds=2, z=1.0)
    even, odd = heard[2, 1, 1], heard[3, 1, 1]
    assert (even > odd).all()
    assert np.array_equal(heard[0, 1, 1], even)


def test_an_optimal_liar_who_knows_little_still_lies():
    models = simulate("optimal-alie", rounds=2, rule="median", pre=["nnm"])
    assert all(np.isfinite(model).all() for model in models.values())


# What defends


def test_values_that_are_not_finite_are_dropped_and_counted():
    models = simulate("nonfinite", rule="median")
    honest = [node for node in range(NODES) if node not in LIARS]
    assert all(np.isfinite(models[node]).all() for node in honest)
    assert [dropped[node]["refused_models"] for node in honest] == [2.0] * 4
    assert all(np.allclose(models[node], np.median([trained[n, 0] for n in honest], axis=0)) for node in honest)


def test_the_mean_is_lost_to_them():
    models = simulate("nonfinite")
    assert all(np.isnan(model).all() for model in models.values())


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attack": "flip"}, r"mods.attack: no attack 'flip' \(there are sign-flip, gaussian"),
        ({"attack": "ipm", "omniscient": True}, "mods.omniscient: needs a board"),
        ({"attack": "ipm", "sigma": 2.0}, r"mods.sigma: no option of 'ipm' \(there are epsilon\)"),
        ({"attack": "nonfinite", "value": 3}, "mods.value: 3 means nothing to 'nonfinite'; allowed: nan, inf"),
    ],
)
def test_bad_input_gets_one_line(config, message):
    with pytest.raises(ConfigError, match=message):
        Byzantine(Byzantine.Config(byzantine=(1,), **config))


def test_messages_without_models_pass():
    class Word(Message, name="test.liar/word/1"):
        text: str = ""

    liar = Byzantine(Byzantine.Config(attack="sign-flip", byzantine=(1,)))

    class Someone:
        me = 1

    word = Word(text="hello")
    assert liar.outgoing(Someone(), 0, word) is word
    assert liar.incoming(Someone(), 0, word) is word


# Boosting


def test_a_boosted_model_survives_its_weight_in_the_mix():
    before, after = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    sent = boosted.solve(type("Boosting", (), {"inputs": (before, after), "static": {"weight": 0.25}})())
    mixed = 0.75 * before + 0.25 * sent
    assert torch.allclose(mixed, after)
    check_op(boosted, [before, after], weight=0.25)
    assert find(boosted.name) is boosted


def test_only_attackers_boost():
    class Far(Mod):
        def trained(self, ctx, before, after):
            return ctx.apply(start, before, node=100)

    boost = Boost(Boost.Config(byzantine=LIARS, weight=0.5))
    exchange([Far(), boost])
    for node in range(NODES):
        expected = 101 + (101 - (node + 1)) if node in LIARS else 101
        assert trained[node, 0].tolist() == [expected] * 4
    assert not math.isnan(trained[0, 0][0])


@pytest.mark.parametrize("weight", [0, -1, 1.5])
def test_a_weight_is_a_share(weight):
    with pytest.raises(ValueError, match="weight"):
        Boost.Config(byzantine=(1,), weight=weight)
