"""A sentence encoder from a local directory, with every socket refused."""

import socket

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from node.errors import ConfigError
from node.selection.encoder import SentenceEncoder

WORDS = ["[PAD]", "[UNK]", "spell", "the", "number", "seven", "in", "german", "a", "poem"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


@pytest.fixture
def encoder(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("an embedder opens no socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return SentenceEncoder(folder)


def test_rows_are_unit_vectors_and_padding_counts_for_nothing(encoder):
    short, long = "spell seven", "a poem in german the number seven"
    both = encoder.embed([short, long])
    assert both.shape == (2, 16)
    assert np.linalg.norm(both, axis=1) == pytest.approx(1, abs=1e-6)
    assert both[0] == pytest.approx(encoder.embed([short])[0], abs=1e-6)
    assert abs(float(both[0] @ both[1])) < 0.999


def test_it_is_the_mean_of_the_last_hidden_states(encoder, folder):
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor([[WORDS.index(word) for word in ("spell", "the", "number")]])
    with torch.inference_mode():
        mean = model(ids).last_hidden_state[0].mean(0)
    assert encoder.embed(["spell the number"])[0] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-6)


def test_a_text_beyond_the_longest_is_cut(folder):
    assert SentenceEncoder(folder, longest=2).embed(["spell seven in german"])[0] == pytest.approx(
        SentenceEncoder(folder).embed(["spell seven"])[0], abs=1e-6
    )


def test_its_name_follows_from_its_weights(encoder, folder, tmp_path):
    assert encoder.name == SentenceEncoder(folder).name
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight += 1
    model.save_pretrained(tmp_path)
    assert SentenceEncoder(tmp_path).name != encoder.name


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no sentence encoder") as refused:
        SentenceEncoder(tmp_path)
    assert "\n" not in str(refused.value)
