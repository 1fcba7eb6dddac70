"""A tokenizer.json for the tests that read text: whole words, as many as the model has rows."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = """the a this is was not very good bad fine great poor camera phone screen battery player
song price box it and works broke fast slow loud quiet . , ! ? new""".split()


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json beside a config.json whose vocabulary has exactly these words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert len(words) == vocab_size, f"{len(words)} words, {vocab_size} rows"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(words[:4])
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
