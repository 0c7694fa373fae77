"""A tiny Llama in a folder, with a tokenizer of bytes and adapters, as the serving tests need them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from node.testbed.tokens import BOS, EOS, PAD, VOCABULARY, tokenizer
from peft_folders import save_adapter

NAMES = ["de", "es", "fr"]


def save_model(folder, context=128):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_adapters(base, folder, names=NAMES, **settings):
    """Different adapters, by name; of different ranks."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    return {
        name: save_adapter(model, folder / name, seed=number, rank=4 + number % 3, **settings)
        for number, name in enumerate(names, 1)
    }
