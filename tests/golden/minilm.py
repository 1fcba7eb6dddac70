"""What transformers makes of six sentences with the published all-MiniLM-L6-v2 weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel
from tokenizers import Tokenizer


def write_minilm(model: Path, folder: Path) -> None:
    """Reads sentences.json in `folder` (kept by hand) and writes hidden.safetensors beside it.

    Sentences are packed one after the other, without padding: `input_ids` [T] i32, `cu_seqlens`
    [B + 1] i32, `last_hidden_state` [T, 384] f32 and `mean` [B, 384] f32 (not normalised).
    """
    sentences = json.loads((folder / "sentences.json").read_text())
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [tokenizer.encode(sentence).ids for sentence in sentences]
    encoder = AutoModel.from_pretrained(model, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.inference_mode():
        # One sentence at a time: no padding is involved at all.
        hidden = [encoder(torch.tensor([row])).last_hidden_state[0] for row in ids]
    ends = torch.tensor([0] + [len(row) for row in ids]).cumsum(0)
    save_file(
        {
            "input_ids": torch.tensor([i for row in ids for i in row], dtype=torch.int32),
            "cu_seqlens": ends.to(torch.int32),
            "last_hidden_state": torch.cat(hidden).float(),
            "mean": torch.stack([rows.mean(0) for rows in hidden]).float(),
        },
        folder / "hidden.safetensors",
    )
    print(f"lengths {[len(row) for row in ids]}")
