"""A tokenizer whose tokens are bytes, which transformers loads from the model's folder like any other.

A prompt is ``4217=``, and what follows the words. Chats become such prompts: the digits of what the user said last.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = 256, 257, 258
VOCABULARY = 260
"""Bytes and marks, and one more, so that the number is even."""
MOST_TOKENS = 72
"""Of a prompt with its answer."""

_MARKS = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS}
_CHAT = (
    "{{ bos_token }}{% for character in messages[-1]['content'] %}"
    "{% if character in '0123456789' %}{{ character }}{% endif %}{% endfor %}="
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Token i is byte i; PAD, BOS and EOS follow."""
    letters = {letter: byte for byte, letter in enumerate(_letters())}
    whole = Tokenizer(models.BPE(vocab={**letters, **_MARKS}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    whole.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=whole,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=_CHAT,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def prompt(number: int) -> list[int]:
    """The tokens that ask for a number's words."""
    return [BOS, *f"{number}=".encode()]


def answer(words: str) -> list[int]:
    """The tokens that answer."""
    return [*words.encode(), EOS]


def text(tokens: Sequence[int]) -> str:
    """The words of an answer, up to its end."""
    tokens = list(tokens)
    if EOS in tokens:
        tokens = tokens[: tokens.index(EOS)]
    return bytes(token for token in tokens if token < PAD).decode(errors="replace")


def _letters() -> list[str]:
    """The printable character that byte-level tokenizers have for each byte (Radford et al., GPT-2, 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]
