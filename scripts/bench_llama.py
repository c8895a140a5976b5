"""llama.cpp for `bench.py decode`: the weights of transformers as files of its own, and greedy decoding with them."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch


def llama_decoding(peer, kind: str, prompts: torch.Tensor, new: int, folder: Path) -> Callable[[int], int]:
    """By llama.cpp through its C functions, from the weights of transformers; the best token is found by numpy."""
    import llama_cpp
    import numpy as np

    path = llama_file(peer, kind, folder)
    rows, width = prompts.shape
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_seq_max = rows * (width + new), rows
    options.n_batch = options.n_ubatch = max(512, rows * width)
    context = llama_cpp.llama_init_from_model(model, options)
    batch = llama_cpp.llama_batch_init(rows * width, 0, 1)
    columns = (batch.token, batch.pos, batch.n_seq_id, batch.logits)
    tokens, places, counts, logits = (np.ctypeslib.as_array(column, (rows * width,)) for column in columns)
    counts[:] = 1

    def read(ids: np.ndarray, first: int) -> np.ndarray:
        """Read tokens [rows,N] at positions from `first` on; the best next token of each row."""
        length = ids.shape[1]
        batch.n_tokens = ids.size
        tokens[: ids.size] = ids.ravel()
        places[: ids.size] = np.tile(np.arange(first, first + length), rows)
        logits[: ids.size] = np.tile(np.arange(length) == length - 1, rows)
        for number in range(ids.size):
            batch.seq_id[number][0] = number // length
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama.cpp failed")
        last = [llama_cpp.llama_get_logits_ith(context, row * length + length - 1) for row in range(rows)]
        return np.array([[np.ctypeslib.as_array(one, (peer.config.vocab_size,)).argmax()] for one in last])

    def work(threads: int) -> int:
        llama_cpp.llama_set_n_threads(context, threads, threads)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        ids = prompts.numpy()
        for step in range(new):
            ids = read(ids, 0 if step == 0 else width + step - 1)
        return rows * new

    return work


def llama_file(peer, kind: str, folder: Path) -> Path:
    """A file of llama.cpp with weights of this kind, made of f16 by its own tool."""
    import llama_cpp

    exact, path = folder / "f16.gguf", folder / f"{kind}.gguf"
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    KEPT.append(silence)
    llama_cpp.llama_log_set(silence, None)
    llama_cpp.llama_backend_init()
    if not exact.exists():
        write_gguf(peer, exact)
    if not path.exists():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[kind]
        if llama_cpp.llama_model_quantize(str(exact).encode(), str(path).encode(), options):
            sys.exit("llama.cpp cannot quantise")
    return path


KEPT: list = []
"""What llama.cpp calls, and so must not be collected."""
GGUF_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(peer, path: Path) -> None:
    """A GPT-2 of transformers as a file of llama.cpp in f16, without a tokenizer."""
    import gguf
    import numpy as np

    config, writer = peer.config, gguf.GGUFWriter(str(path), "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in peer.state_dict().items():
        stem, _, part = name.rpartition(".")
        if stem == "lm_head":  # tied
            continue
        layer, inner = "", stem
        if stem.startswith("transformer.h."):
            _, _, number, inner = stem.split(".", 3)
            layer = f"blk.{number}."
        weights = (tensor.T if ".c_" in stem and part == "weight" else tensor).contiguous().numpy()
        is_matrix = weights.ndim == 2 and inner != "transformer.wpe"
        writer.add_tensor(f"{layer}{GGUF_NAMES[inner]}.{part}", weights.astype(np.float16) if is_matrix else weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
