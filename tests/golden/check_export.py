"""Loads what `frostline export` wrote and compares its probabilities with `frostline predict`'s.

    frostline predict --model trained texts.csv --json --device cpu > predicted.jsonl
    frostline export --model trained --head topic --output topic
    python tests/golden/check_export.py topic topic predicted.jsonl

Needs torch and transformers; folders of sentence-transformers need that library too. Fails where a tensor is missing
or left over, or a probability is off by more than 1e-4.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast


def logits_of_transformers(folder, texts):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]:
        # The model's own buffers of positions are no weights.
        left = [key for key in info[kind] if not str(key).endswith(("position_ids", "token_type_ids"))]
        assert not left, f"{kind}: {left}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.no_grad():
        rows = [model.eval()(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in texts]
    labels = [model.config.id2label[at] for at in range(len(model.config.id2label))]
    return torch.stack(rows), labels


def logits_of_sentence_transformers(folder, texts):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    labels = json.loads((folder / "2_Dense/labels.json").read_text())
    return torch.tensor(model.encode(texts)), labels


def main(folder, task, predictions):
    rows = [json.loads(line) for line in Path(predictions).read_text().splitlines()]
    assert rows, f"{predictions} is empty"
    is_sentences = (folder / "modules.json").exists()
    load = logits_of_sentence_transformers if is_sentences else logits_of_transformers
    logits, labels = load(folder, [row["text"] for row in rows])
    probabilities = torch.softmax(logits.double(), dim=-1)
    expected = torch.tensor([[row[task]["probabilities"][label] for label in labels] for row in rows])
    worst = (probabilities - expected).abs().max().item()
    assert worst <= 1e-4, f"probabilities differ by {worst}"
    print(f"{folder}: {len(rows)} rows, {len(labels)} labels, probabilities differ by at most {worst:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
