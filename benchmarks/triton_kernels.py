"""Compile the Triton kernels that vLLM would run on a card, without the card.

    python -m benchmarks.triton_kernels t4       # a table; wants the GPU lock installed

vLLM's unified attention at each recipe's head shape, and its LoRA shrink and expand: do they
compile for the card's compute capability, and do they fit its shared memory (64 KiB on a T4)?
"""

import argparse
import os
import tempfile
from typing import Any

from tests.pretend_gpu import CARDS, pretend

# fmt: off
HEADS = {  # query heads, key heads, their size, soft cap
    "SmolLM2-135M":  (9, 3, 64, 0.0),
    "Qwen2.5-0.5B":  (14, 2, 64, 0.0),
    "Qwen2.5-1.5B":  (12, 2, 128, 0.0),
    "Qwen2.5-3B":    (16, 2, 128, 0.0),
    "Llama-3.2-1B":  (32, 8, 64, 0.0),
    "Qwen3-4B":      (32, 8, 128, 0.0),
    "Gemma-2-2B":    (8, 4, 256, 50.0),
}
# fmt: on
LORA = ((2048, (2048, 256, 256), 16), (2048, (2048, 256, 256), 64), (2048, (11008, 11008), 16))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton_kernels", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("card", nargs="?", choices=CARDS, default="t4")
    card = CARDS[parser.parse_args().card]
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
    pretend(card)
    compiled = watch_compiler(card)
    import torch

    dtype = torch.float16 if card.capability < (8, 0) else torch.bfloat16
    limit = 65536 if card.capability < (8, 0) else 101376
    print("| kernel | model or rank | shared memory | tensor cores |\n|---|---|---|---|")
    for model, shape in HEADS.items():
        for decode in (False, True):
            row = attempt(lambda s=shape, d=decode: attention(*s, d, dtype), compiled)
            show(f"attention, {'decode' if decode else 'prefill'}", model, row, limit)
    for hidden, sizes, rank in LORA:
        for call in (shrink, expand):
            row = attempt(lambda c=call, h=hidden, s=sizes, r=rank: c(h, s, r, dtype), compiled)
            show(f"LoRA {call.__name__}", f"rank {rank}, to {sizes[0]}", row, limit)


def watch_compiler(card: Any) -> list[tuple[int, bool]]:
    """Have Triton compile for the card and run nothing; what it compiles is added to the list:
    bytes of shared memory, and whether it uses tensor cores."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        launcher_cls = None

        class utils:
            @staticmethod
            def get_device_properties(device):
                properties = torch.cuda.get_device_properties()
                return dict(
                    max_shared_mem=properties.shared_memory_per_block_optin,
                    multiprocessor_count=card.processors,
                    max_num_regs=65536,
                    warpSize=32,
                    sm_clock_rate=1590000,
                    mem_clock_rate=5000000,
                    mem_bus_width=256,
                )

        def get_current_target(self):
            return GPUTarget("cuda", 10 * card.capability[0] + card.capability[1], 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device=None):
            return 0

        def set_current_device(self, device):
            pass

        def get_device_capability(self, device=None):
            return card.capability

        def get_active_torch_device(self):
            return torch.device("cpu")

    driver.set_active(Driver())
    compiled, run = [], JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        if kernel is not None:
            compiled.append((kernel.metadata.shared, "mma.sync" in kernel.asm.get("ptx", "")))
        return kernel

    JITFunction.run = compile_only
    return compiled


def attempt(call: Any, compiled: list) -> list | str:
    compiled.clear()
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return list(compiled)


def show(kernel: str, what: str, row: list | str, limit: int) -> None:
    if isinstance(row, str):
        print(f"| {kernel} | {what} | {row} | |")
        return
    shared = max(size for size, _ in row)
    fits = "" if shared <= limit else " (too much)"
    print(f"| {kernel} | {what} | {shared / 1024:.0f} KiB{fits} | {'yes' if row[0][1] else 'no'} |")


def attention(heads: int, key_heads: int, size: int, cap: float, decode: bool, dtype: Any) -> None:
    import torch
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention

    n, tokens = 32, 1 if decode else 8
    q = torch.zeros(n * tokens, heads, size, dtype=dtype)
    keys = torch.zeros(64, 16, key_heads, size, dtype=dtype)
    parts = {}
    if decode:
        parts = dict(
            seq_threshold_3D=64,
            num_par_softmax_segments=16,
            softmax_segm_output=torch.zeros(n, heads, 16, size),
            softmax_segm_max=torch.zeros(n, heads, 16),
            softmax_segm_expsum=torch.zeros(n, heads, 16),
        )
    unified_attention(
        q=q,
        k=keys,
        v=keys.clone(),
        out=torch.empty_like(q),
        cu_seqlens_q=torch.arange(0, n + 1, dtype=torch.int32) * tokens,
        max_seqlen_q=tokens,
        seqused_k=torch.full((n,), 64, dtype=torch.int32),
        max_seqlen_k=64,
        softmax_scale=0.1,
        causal=True,
        window_size=(-1, -1),
        block_table=torch.zeros(n, 8, dtype=torch.int32),
        softcap=cap,
        q_descale=None,
        k_descale=torch.ones(n, key_heads),
        v_descale=torch.ones(n, key_heads),
        **parts,
    )


def shrink(hidden: int, sizes: tuple[int, ...], rank: int, dtype: Any) -> None:
    import torch
    from vllm.lora.ops.triton_ops import lora_shrink_op

    x = torch.zeros(TOKENS, hidden, dtype=dtype)
    a = [torch.zeros(1, rank, hidden, dtype=dtype) for _ in sizes]
    with on_the_cpu():
        out = torch.zeros(len(sizes), TOKENS, rank)
        lora_shrink_op._lora_shrink(x, a, out, *_routing(), 1.0)


def expand(hidden: int, sizes: tuple[int, ...], rank: int, dtype: Any) -> None:
    import torch
    from vllm.lora.ops.triton_ops import lora_expand_op

    b = [torch.zeros(1, size, rank, dtype=dtype) for size in sizes]
    out = torch.zeros(TOKENS, sum(sizes), dtype=dtype)
    with on_the_cpu():
        x = torch.zeros(len(sizes), TOKENS, rank)
        lora_expand_op._lora_expand(x, b, out, *_routing(), 0, True)


TOKENS = 1024


class on_the_cpu:
    """vLLM makes small tensors of its own on the card."""

    def __enter__(self):
        import torch

        self.tensor = torch.tensor

        def tensor(*arguments, pin_memory=False, device=None, **options):
            return self.tensor(*arguments, **options)

        torch.tensor = tensor

    def __exit__(self, *raised):
        import torch

        torch.tensor = self.tensor


def _routing() -> tuple:
    """All tokens go to the first adapter."""
    import torch

    zeros = torch.zeros(TOKENS, dtype=torch.int32)
    each = torch.arange(TOKENS, dtype=torch.int32)
    counts = torch.zeros(2, dtype=torch.int32)
    counts[0] = TOKENS
    starts = torch.zeros(3, dtype=torch.int32)
    starts[1:] = TOKENS
    ids = torch.zeros(2, dtype=torch.int32)
    ids[1] = -1
    one = torch.ones(1, dtype=torch.int32)
    return zeros, each, counts, starts, ids, torch.zeros(1, dtype=torch.bool), one


if __name__ == "__main__":
    main()
