"""What `bench.py decode` and `bench.py first` time: answers by txtgen and by its peers, with random weights.

A candidate is a function of the number of threads that gives one answer and says how many tokens it was.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from bench_candidates import huggingface_model, litgpt_model, own_model
from bench_llama import llama_decoding

Candidate = Callable[[int], int]
PROMPT = 32
"""Tokens of each prompt of decode."""
KINDS = ("float32", "bfloat16", "int8", "int4")


def wanted(arguments: argparse.Namespace, name: str) -> bool:
    """Whether a candidate is to be timed."""
    return arguments.peers is None or any(name.startswith(peer) for peer in arguments.peers)


def in_kind(model, kind: str):
    """A step model of txtgen with weights of this kind, by machine code."""
    from txtgen.model import step_model
    from txtgen.model.quantize import quantize_model

    model = copy.deepcopy(model).eval()
    if kind.startswith("int"):
        quantize_model(model, kind)
    else:
        model = model.to(getattr(torch, kind))
    return step_model(model, "require")


# -- decode


def decoding(shape: dict[str, int], arguments: argparse.Namespace, folder: Path) -> dict[str, Candidate]:
    """Greedy decoding of `arguments.new` tokens after prompts of 32, `arguments.batch` at a time."""
    new, rows = arguments.new, arguments.batch
    shape = {**shape, "context": max(PROMPT + new, shape["context"])}
    prompts = torch.randint(10, shape["vocabulary"], (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    model, peer = own_model(shape), huggingface_model(shape).eval()
    works: dict[str, Candidate] = {}
    for kind in KINDS:
        if wanted(arguments, f"txtgen {kind}"):
            works[f"txtgen {kind}"] = own_decoding(in_kind(model, kind), prompts, new)
    for kind in KINDS[:2]:
        if wanted(arguments, f"transformers {kind}"):
            works[f"transformers {kind}"] = huggingface_decoding(peer, kind, prompts, new)
        if wanted(arguments, f"litgpt {kind}"):
            works[f"litgpt {kind}"] = litgpt_decoding(shape, kind, prompts, new)
    for kind in ("float32", "int8"):
        if wanted(arguments, f"ctranslate2 {kind}"):
            works[f"ctranslate2 {kind}"] = ctranslate2_decoding(peer, kind, prompts, new, folder)
    for kind in ("f16", "q8_0", "q4_0"):
        if wanted(arguments, f"llama.cpp {kind}"):
            works[f"llama.cpp {kind}"] = llama_decoding(peer, kind, prompts, new, folder)
    return works


def own_decoding(model, prompts: torch.Tensor, new: int) -> Candidate:
    """By txtgen's search."""
    from txtgen.config.decoding import GreedyConfig
    from txtgen.decode import PromptBatch, search

    rows, width = prompts.shape
    batch = PromptBatch(prompts, torch.full((rows,), width))

    def work(_threads: int) -> int:
        found = search(model, batch, GreedyConfig(), limits=[new] * rows)
        return sum(len(results[0].token_ids) for results in found)

    return work


def huggingface_decoding(peer, kind: str, prompts: torch.Tensor, new: int) -> Candidate:
    """By generate of transformers."""
    model = copy.deepcopy(peer).to(getattr(torch, kind))
    mask = torch.ones_like(prompts)

    def work(_threads: int) -> int:
        with torch.inference_mode():
            options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            found = model.generate(prompts, attention_mask=mask, **options)
        return found[:, prompts.shape[1] :].numel()

    return work


def litgpt_decoding(shape: dict[str, int], kind: str, prompts: torch.Tensor, new: int) -> Candidate:
    """By litgpt's model and cache, a token at a time."""
    dtype = getattr(torch, kind)
    model = litgpt_model(shape).eval().to(dtype)
    rows, width = prompts.shape
    model.max_seq_length = width + new
    model.set_kv_cache(batch_size=rows, max_seq_length=width + new, dtype=dtype)

    @torch.inference_mode()
    def work(_threads: int) -> int:
        places = torch.arange(width)
        tokens = model(prompts, places, input_pos_maxp1=width)[:, -1:].argmax(-1)
        for place in range(width, width + new - 1):
            tokens = model(tokens, torch.tensor([place]), input_pos_maxp1=place + 1)[:, -1:].argmax(-1)
        return rows * new

    return work


def ctranslate2_decoding(peer, kind: str, prompts: torch.Tensor, new: int, folder: Path) -> Candidate:
    """By CTranslate2, from the weights of transformers."""
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader

    path = folder / f"ctranslate2-{kind}"
    spec = GPT2Loader().get_model_spec(copy.deepcopy(peer))
    words = [f"t{number}" for number in range(prompts.max() + 1)]
    words += [f"t{number}" for number in range(len(words), peer.config.vocab_size)]
    spec.register_vocabulary(words)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = words[0]
    save(spec, kind, path)
    begun = [[words[token] for token in prompt] for prompt in prompts.tolist()]
    model = cache(partial(ctranslate2.Generator, str(path), "cpu", compute_type=kind))

    def work(threads: int) -> int:
        options = {"max_length": new, "min_length": new, "sampling_topk": 1, "include_prompt_in_result": False}
        found = model(intra_threads=threads).generate_batch(begun, **options)
        return sum(len(result.sequences_ids[0]) for result in found)

    return work


def save(spec, kind: str, path: Path) -> None:
    """A model of CTranslate2, with weights of this kind."""
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    path.mkdir()
    spec.save(str(path))


# -- first


HUGGINGFACE_FIRST = """
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=1, do_sample=False, pad_token_id=0))
"""


def first_token_commands(shape: dict[str, int], folder: Path) -> dict[str, list[str]]:
    """Commands until a first token, and what no command can be faster than."""
    from txtgen.checkpoint import Checkpoint, save_checkpoint
    from txtgen.config.checkpoint import CheckpointConfig
    from txtgen.config.tokenizer import SentencePieceConfig
    from txtgen.tokenizer import train_sentencepiece

    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    tokenizer, _ = train_sentencepiece(SentencePieceConfig(vocab_size=320), [text])
    model = own_model(shape)
    config = CheckpointConfig(model=model.config)
    path, peer = folder / "model.pth", folder / "huggingface"
    save_checkpoint(path, Checkpoint(config, model.state_dict(), tokenizer, None, {}))
    huggingface_model(shape).save_pretrained(peer)
    generate = [sys.executable, "-m", "txtgen", "generate", str(path), "--prompt", "one", "--max-new-tokens", "1"]
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "import torch, read the file": [sys.executable, "-c", f"import torch; open({str(path)!r}, 'rb').read()"],
        "txtgen": generate,
        "txtgen --quantize int8": [*generate, "--quantize", "int8"],
        "transformers": [sys.executable, "-c", HUGGINGFACE_FIRST, str(peer)],
    }
