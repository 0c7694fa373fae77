"""A tiny Llama of random weights and adapters for it, as PEFT itself makes and saves them."""

import json
import struct
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do when they are imported is theirs
    from peft import LoraConfig, PeftModel, get_peft_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_llama(seed=0, hidden=32, layers=2):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def save_adapter(model, folder, seed=0, targets=ALL, rank=4, alpha=8, size=0.3, **settings):
    """Save an adapter of random weights; the model is as it was."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), **settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
        peft.save_pretrained(str(folder))
        peft.unload()
    return folder


def with_peft(model, folders):
    """PEFT's own model of all these adapters, by their folders' names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        first, *others = folders
        peft = PeftModel.from_pretrained(model, str(first), adapter_name=first.name)
        for folder in others:
            peft.load_adapter(str(folder), adapter_name=folder.name)
    return peft.eval()


def safetensors_bytes(header, data=b""):
    """A safetensors file with any header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
