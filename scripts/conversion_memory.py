"""Peak memory of `txtgen convert`, relative to the weights: on a sharded random Llama of 1.1 billion parameters.

python scripts/conversion_memory.py              # needs about 7 GB of disk; --layers 2 for a quick look
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--shards", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "random-llama"
        # In a process of its own: a child's peak begins with what its parent held when it forked.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            size = pool.submit(write_model, folder, arguments.layers, arguments.shards, arguments.dtype).result()
        print(f"weights      {size / 1e9:7.2f} GB in {arguments.shards} shards, {arguments.dtype}")
        idle = peak_of("--version")
        print(f"--version    {idle / 1e9:7.2f} GB")
        for name, command in {
            "from-hf": ("convert", "from-hf", str(folder), f"{place}/model.pth"),
            "to-hf": ("convert", "to-hf", f"{place}/model.pth", f"{place}/out"),
        }.items():
            peak = peak_of(*command)
            print(f"{name:12} {peak / 1e9:7.2f} GB, {peak / size:.2f} times the weights")


def write_model(folder: Path, layers: int, shards: int, dtype_name: str) -> int:
    """A folder of random weights in shards. Returns the bytes of the weights."""
    import torch
    from safetensors.torch import save_file

    from txtgen.config.tokenizer import SentencePieceConfig
    from txtgen.convert.families import FAMILIES, Written
    from txtgen.convert.fields import Fields
    from txtgen.model import build_model
    from txtgen.tokenizer import train_sentencepiece

    dtype = getattr(torch, dtype_name)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    texts = [f"number {number} and its square {number * number}\n" for number in range(1000)]
    tokenizer, _ = train_sentencepiece(SentencePieceConfig(vocab_size=400), texts)
    (folder / "tokenizer.model").write_bytes(tokenizer.files()["tokenizer.model"])
    family = FAMILIES["llama"]
    config = family.read(Fields(CONFIG | {"num_hidden_layers": layers}, "config"), {})
    shapes = Written(family, config, build_model(config, "meta").state_dict())
    names, weight_map, size = list(shapes), {}, 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        tensors = {name: torch.randn(shapes[name].shape, dtype=dtype) * 0.02 for name in part}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return size


def peak_of(*arguments: str) -> int:
    """Bytes of memory that the command held at most, pages of mapped files included."""
    process = subprocess.Popen([sys.executable, "-m", "txtgen", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: txtgen {' '.join(arguments)} failed")
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
