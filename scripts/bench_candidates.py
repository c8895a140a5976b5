"""What `bench.py train` times against one another: a step of training, by txtgen and by its peers; and their models."""

import argparse
from collections.abc import Callable

Candidate = Callable[[], int]
"""Does one piece of work and says how many tokens it was."""


def training(shape: dict[str, int], arguments: argparse.Namespace) -> dict[str, tuple[Candidate, int]]:
    """One optimizer step of each: forward, backward, clip, AdamW, and a look at the loss; with its threads."""
    import torch
    from plain_gpt2 import GPT2, optimizer_of, train_step

    from txtgen.commands.devices import training_dtype

    rows, width = shape["batch"], shape["context"]
    ids = torch.randint(10, shape["vocabulary"], (rows, width + 1))
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    dtype = getattr(torch, arguments.dtype)
    native = training_dtype("auto", torch.device("cpu"), own_config(shape))
    works: dict[str, Candidate] = {"txtgen": own_training(shape, inputs, labels, dtype)}
    if native != dtype:
        works["txtgen, native dtype"] = own_training(shape, inputs, labels, native)

    def peer(model: torch.nn.Module, loss: Callable[[torch.nn.Module], torch.Tensor], fused: bool) -> Candidate:
        model.train()
        optimizer = optimizer_of(model, 1e-4, fused=fused)

        def step() -> int:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                found = loss(model)
            found.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found.item()
            return rows * width

        return step

    def wanted(name: str) -> bool:
        return arguments.peers is None or name in arguments.peers

    sizes = {name: shape[name] for name in ("vocabulary", "layers", "width", "heads", "context")}
    if wanted("plain"):
        plain, optimizer = GPT2(**sizes), None
        optimizer = optimizer_of(plain, 1e-4)
        works["plain fp32 eager"] = lambda: (train_step(plain, optimizer, inputs, labels), rows * width)[1]
        works["plain, fused AdamW"] = peer(GPT2(**sizes), lambda model: model(inputs, labels), fused=True)
    if wanted("transformers"):
        forward = lambda model: model(input_ids=inputs, labels=labels, shift_labels=labels).loss  # noqa: E731
        works["transformers"] = peer(huggingface_model(shape), forward, fused=True)
    if wanted("litgpt"):
        from litgpt.utils import chunked_cross_entropy

        litgpt = lambda model: chunked_cross_entropy(model(inputs), labels)  # noqa: E731
        works["litgpt"] = peer(litgpt_model(shape), litgpt, fused=True)
    everywhere = sorted({1, torch.get_num_threads()})
    return {f"{name} ({count} threads)": (work, count) for name, work in works.items() for count in everywhere}


def own_training(shape: dict[str, int], inputs, labels, dtype) -> Candidate:
    """A step of txtgen's loop."""
    import torch

    from txtgen.config.train import AdamWConfig, ConstantSchedule, TrainConfig
    from txtgen.data.types import Batch
    from txtgen.train import TrainState, build_optimizer, train

    rows, width = inputs.shape
    positions = torch.arange(width).expand(rows, width).contiguous()
    batch = Batch(inputs, labels, positions, torch.ones(rows, width, dtype=torch.int32))
    model = own_model(shape).train()
    state = TrainState(model, build_optimizer(model, AdamWConfig(learning_rate=1e-4)))
    config = TrainConfig(steps=10**9, batch_tokens=rows * width, schedule=ConstantSchedule())
    steps = train(state, iter(lambda: batch, None), config, dtype=dtype)
    return lambda: next(steps).tokens


def own_config(shape: dict[str, int]):
    """A GPT-2 of this shape, as txtgen's config says it."""
    from txtgen.config.model import DecoderConfig, LearnedPosition

    sizes = {"d_model": "width", "num_layers": "layers", "num_heads": "heads", "max_length": "context"}
    return DecoderConfig(
        **{ours: shape[name] for ours, name in sizes.items()},
        vocab_size=shape["vocabulary"],
        position=LearnedPosition(),
        attention_bias=False,
        ffn_bias=False,
        norm_bias=False,
    )


def own_model(shape: dict[str, int]):
    """The same, with weights."""
    from txtgen.model import build_model, init_weights

    model = build_model(own_config(shape), device="cpu")
    init_weights(model, 0)
    return model


def huggingface_model(shape: dict[str, int]):
    """A GPT-2 of this shape, by transformers, with the activation that costs least."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=shape["width"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            n_positions=shape["context"],
            vocab_size=shape["vocabulary"],
            activation_function="gelu",
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=2,
            eos_token_id=None,
        )
    )


def litgpt_model(shape: dict[str, int]):
    """A GPT of this shape, by litgpt: rotary positions, an output layer of its own."""
    from litgpt import GPT, Config

    return GPT(
        Config(
            block_size=shape["context"],
            padded_vocab_size=shape["vocabulary"],
            vocab_size=shape["vocabulary"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            n_embd=shape["width"],
            bias=False,
            parallel_residual=False,
            rotary_percentage=1.0,
        )
    )
