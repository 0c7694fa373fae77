"""Where a model is cut into core and head, and who is told when it cannot be."""

import pytest
import torch
from torch import nn

from node.config import ModelSection
from node.errors import ConfigError
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.learn.models import Model, build
from node.op import Spec


def made(name, shape=(1, 28, 28)):
    return build(ModelSection(name=name, hidden=(16, 8)), shape, 10)


def layers(model):
    """Parameters of each layer that has some, in order: from the module itself."""
    counts = [sum(p.numel() for p in part.parameters(recurse=False)) for part in model.module.modules()]
    return [count for count in counts if count]


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
def test_the_head_is_the_last_layers_weights_and_biases(name):
    model = made(name)
    sizes = layers(model)
    assert len(sizes) > 2
    for count in range(1, len(sizes)):
        assert model.dimension - model.cut(count) == sum(sizes[-count:])


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
def test_the_last_layer_classifies(name):
    """Without its head a model gives the same features, whatever the head is."""
    model = made(name)
    flat = model.initial(3)
    head = model.named(flat)[model.parts[-2][0]]
    assert head.shape[0] == 10
    assert model.cut(1) == model.parts[-2][1].start
    changed = flat.clone()
    changed[model.cut(1) :] = 0.0
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.logits(changed, images), torch.zeros(2, 10))


def test_a_layer_without_bias_is_a_layer():
    model = Model("plain", lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)))
    assert (model.cut(1), model.dimension) == (12, 22)


@pytest.mark.parametrize("count", [-1, 0, 3, 99])
def test_as_many_layers_as_there_are_or_more_are_no_head(count):
    with pytest.raises(ConfigError) as refused:
        made("mlp").cut(count)
    assert str(refused.value) == f"private layers: {count} of the 3 of 'mlp'; allowed: 1 to 2"


def test_a_model_of_one_layer_has_no_head():
    with pytest.raises(ConfigError) as refused:
        made("softmax").cut(1)
    assert str(refused.value) == "private layers: 1 of the 1 of 'softmax'; allowed: none, for one must be left to share"


# Before a run


def prepared(*sets):
    small = ["nodes=6", "protocol.rounds=1", "data.partition=iid", "topology.degree=2", *sets]
    return prepare(load("digits-gossip", ["protocol.use=fedper", *small], {}))


def test_a_head_as_deep_as_the_model_is_refused_before_the_run():
    for count in (2, 3):
        with pytest.raises(ConfigError) as refused:
            prepared(f"protocol.head_layers={count}")
        assert "\n" not in str(refused.value)
        assert str(refused.value) == f"private layers: {count} of the 2 of 'mlp'; allowed: 1 to 1"


def test_a_message_may_carry_core_head_or_model():
    setup = prepared("model.hidden=[16,8]", "protocol.head_layers=2")
    model = setup.model
    head = 16 * 8 + 8 + 8 * 10 + 10
    assert setup.shapes == {model.spec, Spec((model.dimension - head,)), Spec((head,))}


def test_a_protocol_without_heads_sends_models_only():
    setup = prepared("protocol.use=dpsgd")
    assert setup.shapes == {setup.model.spec}
