"""A learned reward: a language model with one output, its score of an answer.

    rewards: {reward_model: 1.0, gold_reward: 0.0}

`reward_model` is what 06_reward_model trained for this run. `gold_reward` is a second model,
trained on other pairs: the policy never earns it (weight 0 only logs it), so where the first
rises and the second does not, the first is being gamed (Gao et al. 2022, arXiv 2210.10760).
Training stands in `lib.rewards.training`, pairs and measures in `lib.rewards.preferences`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from lib.config import ROOT
from lib.errors import BadInput
from lib.rewards import completion_texts
from lib.runs import Run, read_json

RECORD = "reward.json"  # its scale, and how good it is
BATCH = 16  # answers in one forward pass


class RewardModel:
    """
    Attributes:
        mean, std: of the scores of held-out answers; `rewards` counts from the one in the other.
    """

    def __init__(self, model: Any, tokenizer: Any, mean: float = 0.0, std: float = 1.0):
        self.model, self.tokenizer, self.mean, self.std = model.eval(), tokenizer, mean, std

    @classmethod
    def load(cls, folder: Path) -> "RewardModel":
        """From a folder of `lib.rewards.training`, on the GPU where there is one."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        record = read_json(folder / RECORD)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        )
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model, tokenizer, record["mean"], record["std"])

    def scores(self, prompts: Sequence[list[dict]], answers: Sequence[str]) -> list[float]:
        """The model's own score of each answer to its prompt (chat messages)."""
        import torch

        with torch.inference_mode():
            # In 32 bit: 16 would round scores that differ by less than 1 %.
            return self.model.score(self.states(prompts, answers))[:, 0].tolist()

    def states(self, prompts: Sequence[list[dict]], answers: Sequence[str]) -> Any:
        """The last token's hidden state, which the output layer scores; (answers, hidden)."""
        import torch

        ids = [
            chat_ids(self.tokenizer, prompt, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        # Answers of like length share a pass, so that little is padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        device = self.model.device
        found = torch.empty(len(ids), self.model.config.hidden_size, device=device)
        with torch.inference_mode(), torch.autocast(device.type, _autocast_dtype(device)):
            for start in range(0, len(order), BATCH):
                part = order[start : start + BATCH]
                batch = self.tokenizer.pad(
                    {"input_ids": [ids[i] for i in part]}, return_tensors="pt", padding_side="right"
                ).to(device)
                states = self.model.base_model(**batch, use_cache=False).last_hidden_state
                found[part] = states[range(len(part)), batch["attention_mask"].sum(1) - 1].float()
        return found

    def rewards(self, prompts: Sequence[list[dict]], answers: Sequence[str]) -> list[float]:
        """Scores in standard deviations from the mean held-out answer."""
        return [(score - self.mean) / self.std for score in self.scores(prompts, answers)]


def _autocast_dtype(device: Any) -> Any:
    import torch

    can = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if can else torch.float16


def chat_ids(tokenizer: Any, prompt: list[dict], answer: str) -> list[int]:
    """The tokens of a conversation that ends with the answer, in the model's own chat template."""
    messages = [*prompt, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@lru_cache(maxsize=2)
def _loaded(folder: str, stamp: int) -> RewardModel:
    """One copy in memory of each model in use; `stamp` tells a newly trained one from an old."""
    return RewardModel.load(Path(folder))


@dataclass(frozen=True)
class LearnedReward:
    """The score of the run's reward model, in standard deviations of held-out answers' scores.

    Args:
        path: a folder that 06_reward_model made, in whichever run; "": this run's own.
        run_folder: where "this run's own" is looked for; given by `recipe_rewards`.

    Raises:
        BadInput: there is no reward model, or it has vanished since the run began.
    """

    path: str = ""
    run_folder: str = ""
    own: ClassVar[str] = "reward_model"  # the folder's name within a run

    def __post_init__(self):
        if self.path:
            self.folder()

    def __call__(self, prompts=None, completions=(), **columns) -> list[float]:
        folder = self.folder()
        if prompts is None:
            raise BadInput("A learned reward needs prompts: it scores answers to them.")
        model = _loaded(str(folder), (folder / RECORD).stat().st_mtime_ns)
        return model.rewards([_messages(p) for p in prompts], completion_texts(completions))

    def folder(self) -> Path:
        """Where the model is, looked at anew each time: a run must not outlive its reward."""
        named = self.path or f"{self.run_folder}/{self.own}"
        for folder in (Path(named).expanduser(), ROOT / named):
            if (folder / RECORD).is_file() and any(folder.glob("*.safetensors")):
                return folder
        raise BadInput(
            f"There is no reward model in {Run.shown(Path(named))}: run 06_reward_model for this "
            f"run (and go on with --resume), or give the reward the path of another one."
        )


@dataclass(frozen=True)
class GoldReward(LearnedReward):
    """The same by the run's second reward model: give it weight 0, and it judges the first."""

    own: ClassVar[str] = "reward_model_gold"


def _messages(prompt: Any) -> list[dict]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
