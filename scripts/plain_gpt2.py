"""A GPT-2 in plain PyTorch and the loop that people train it with: the peer that `bench.py` compares with.

    python scripts/plain_gpt2.py TRAIN.txt VAL.txt

trains on characters in 32-bit floating point as nanoGPT's recipe for a CPU says: 4 layers, 4 heads, width 128, context
64, 12 rows, 2,000 steps of AdamW from 1e-3 to 1e-4 by a cosine after 100 steps of warm-up, and losses of 20 batches of
either text every 250 steps. Prints the validation loss at the end.
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and feed-forward behind LayerNorms, no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.qkv(self.attention_norm(x)).split(width, dim=2)
        query, key, value = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).contiguous().view(rows, length, width))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT2(nn.Module):
    """Learned positions, tied embeddings."""

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.tokens.weight = self.head.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of targets [B,T] given ids [B,T]."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def optimizer_of(model: nn.Module, rate: float, beta2: float = 0.95, fused: bool = False) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices."""
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": 0.1},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta2), fused=fused or None)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor) -> float:
    """One step; the loss."""
    loss = model(ids, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


STEPS, WARM_UP, RATE, FINAL_RATE = 2000, 100, 1e-3, 1e-4
ROWS, CONTEXT, EVALUATE_EVERY, EVALUATION_BATCHES = 12, 64, 250, 20


def rate_at(step: int) -> float:
    if step < WARM_UP:
        return RATE * (step + 1) / (WARM_UP + 1)
    share = (step - WARM_UP) / (STEPS - WARM_UP)
    return FINAL_RATE + 0.5 * (1 + math.cos(math.pi * share)) * (RATE - FINAL_RATE)


def main(train_path: str, val_path: str) -> None:
    torch.manual_seed(1337)
    texts = [Path(path).read_text(encoding="utf-8") for path in (train_path, val_path)]
    numbers = {character: number for number, character in enumerate(sorted(set("".join(texts))))}
    train, val = (torch.tensor([numbers[character] for character in text]) for text in texts)

    def batch(data: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - CONTEXT, (ROWS,)).tolist()
        ids = torch.stack([data[start : start + CONTEXT] for start in starts])
        return ids, torch.stack([data[start + 1 : start + 1 + CONTEXT] for start in starts])

    @torch.no_grad()
    def losses() -> list[float]:
        return [
            sum(float(model(*batch(data))) for _ in range(EVALUATION_BATCHES)) / EVALUATION_BATCHES
            for data in (train, val)
        ]

    model = GPT2(len(numbers), layers=4, width=128, heads=4, context=CONTEXT)
    optimizer = optimizer_of(model, RATE, beta2=0.99)
    for step in range(STEPS + 1):
        if step % EVALUATE_EVERY == 0:
            found = losses()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        train_step(model, optimizer, *batch(train))
    print(f"{found[1]:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
