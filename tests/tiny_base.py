"""A base model small enough to train in a second, and rows it can learn. Random weights, always the same ones."""

import csv
import json
import random
import string
from collections.abc import Sequence
from pathlib import Path

HIDDEN_SIZE = 32
MAX_LENGTH = 64

# A label is told by its words; the other words say nothing.
LABEL_WORDS = {
    label: words.split()
    for label, words in {
        "delivery": "parcel courier late tracking shipped arrive package driver address delayed doorstep van",
        "other": "hello thanks opening hours shop recipe colour size weather music garden question",
        "refund": "money back charged twice invoice bank card payment cancelled owed paid fee",
    }.items()
}
_FILLER_TEXT = """
i you we they it my your the a an is was are be been will would can could do did not and or but if so to of in on at by
for from with about please yesterday today still again just very now when where why how what this that
"""
FILLERS = _FILLER_TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary() -> list[str]:
    """Under 200 words and pieces; every Latin text has ids."""
    letters = [*string.ascii_lowercase, *string.digits]
    words = [word for words in LABEL_WORDS.values() for word in words]
    return list(dict.fromkeys([*SPECIAL, *words, *FILLERS, *letters, *(f"##{x}" for x in letters), *".,?!'-"]))


def make_tiny_base(folder: Path, layers: int = 2) -> Path:
    """Write a small BERT with its WordPiece tokenizer into `folder`, and return it."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.2,  # texts that differ get vectors that differ, though nothing was learned
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    _write_tokenizer(folder, words)
    return folder


def _write_tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {f"{name}_token": word for name, word in named.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def learnable_rows(count: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label): labels in turn, texts of 3 to 14 words of which some tell the label."""
    chance = random.Random(seed)
    labels = sorted(LABEL_WORDS)
    rows = []
    for i in range(count):
        label = labels[i % len(labels)]
        words = chance.choices(FILLERS, k=chance.randint(2, 10)) + chance.choices(LABEL_WORDS[label], k=2)
        chance.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[str]], headers: Sequence[str] = ("text", "label")) -> Path:
    """Write rows under a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([headers, *rows])
    return path


def write_learnable_csv(path: Path, count: int = 60, seed: int = 0) -> Path:
    """Write a small CSV (text, label) that a classifier can learn."""
    return write_csv(path, learnable_rows(count, seed))
