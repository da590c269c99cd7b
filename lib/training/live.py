"""What a run shows of itself while it trains: the curves, and in words what goes wrong.

    >>> log = [{"step": i, "completions/clipped_ratio": 0.9} for i in range(1, 11)]
    >>> [alarm.name for alarm in alarms(log)]
    ['mostly truncated']

Each check compares the latest steps with the first ones, `window(log)` of each. A reward
"rose" where the difference is `CLEAR` standard errors and "stood still" below one, so that
the noise of small batches rings nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import TrainerCallback

from lib.files import write_json
from lib.hardware import is_main_process
from lib.runs import Run

WINDOW = 5  # steps at the least; before there are two such windows no change is seen
CLEAR = 3.0  # standard errors; each new step is another chance to ring, so 2 are too few
FLAT_STEPS = 30  # a run of the embedded model whose groups never differed stood still this long
LOST_GAIN = 0.5  # share of the best gain that is gone again
NO_SIGNAL = 0.75  # share of groups: then a step costs four times what it teaches (DAPO, sec. 3.2)
TRUNCATED = 0.5  # share of completions: their reward tells of the limit, not of the answer
LONGER = 2.0  # without more reward: GRPO's length bias (Liu et al. 2025, Dr. GRPO, sec. 3.1)
SHORTER = 1 / 3  # without more reward; with it the policy merely stopped rambling
# At 0.02 nats a token the likeliest one has about 99.7%: nothing is left to try, and the
# reward stays where it is (Cui et al. 2025, arXiv 2505.22617). Healthy runs of short answers
# end at 0.1 to 0.5.
ENTROPY_LOW = 0.02
ENTROPY_LEFT = 0.1  # and at most this share of what it began with
KL_HIGH = 1.0  # nats a token: the policy is e times as sure of its tokens as the reference
DRIVER = 0.9  # share of all rises that one reward makes up, while another stands still
HELDOUT_PROBLEMS = 64  # assumed where "heldout/problems" does not say
# Nats a token between sampler and trainer. bf16 alone leaves 0.03 on a CPU; above 0.1
# the update is off-policy in earnest (Yao et al. 2025, truncated importance sampling).
SAMPLER_GAP = 0.1
PENALTIES = ("soft_overlong", "repetition_penalty")  # 0 is the most they pay

Log = Sequence[Mapping]  # rows of `train_log.jsonl`; a key that is missing rings nothing
Rung = Iterator[tuple[str, str]]  # an alarm's name, and its sentence


@dataclass(frozen=True)
class Alarm:
    """A name to look for, the step it was raised at, and a sentence: what, and what to do."""

    name: str
    step: int
    sentence: str


def alarms(log: Log, weights: Mapping[str, float] | None = None) -> list[Alarm]:
    """What is wrong at the latest step of the log. A reward without a weight counts 1."""
    found = []
    for check in (_reward, _groups, _policy, _one_reward, _hacking):
        found += check(log, weights or {}) if log else []
    return [Alarm(name, log[-1]["step"], sentence) for name, sentence in found]


class Course:
    """A value's mean in a first and in a latest window of steps, and the error of their difference,
    from the standard deviation of single steps."""

    def __init__(self, first: np.ndarray, last: np.ndarray, scatter: float):
        self.before, self.now = float(first.mean()), float(last.mean())
        self.change = self.now - self.before
        self.error = float(scatter * np.sqrt(1 / len(first) + 1 / len(last)))
        self.rose = self.change > CLEAR * self.error
        self.fell = -self.change > CLEAR * self.error
        self.still = self.change <= self.error  # not higher than chance alone makes it


def window(log: Log) -> int:
    """How many steps are compared: a fifth of the run, so that long runs are judged calmly."""
    return max(WINDOW, len(log) // 5)


def values(log: Log, key: str) -> np.ndarray:
    """The key's numbers in the rows that have one."""
    series = [row[key] for row in log if row.get(key) is not None]
    return np.array([value for value in series if np.isfinite(value)], dtype=float)


def course(log: Log, key: str, to_best: bool = False) -> Course | None:
    """None where the log does not hold enough of the key; `to_best`: to the window with the highest
    mean, not to the latest."""
    series, size = values(log, key), window(log)
    if len(series) < 2 * WINDOW:
        return None
    # Of single steps around their trend, from the differences of all steps, where the few of a
    # window would often guess it too small (von Neumann et al. 1941).
    scatter = float(np.sqrt((np.diff(series) ** 2).mean() / 2))
    parts = [series[i : i + size] for i in range(len(series) - size + 1)]
    return Course(parts[0], max(parts, key=np.mean) if to_best else parts[-1], scatter)


def _reward(log: Log, weights: Mapping) -> Rung:
    c, gain = course(log, "reward"), course(log, "reward", to_best=True)
    if c is None:
        return
    if len(log) >= FLAT_STEPS and c.still and not c.fell:
        yield (
            "reward flat",
            f"{c.before:.3g} in the first steps and {c.now:.3g} now, within the noise of "
            f"±{c.error:.2g}; a hard task can take 150 steps and more, but look at the groups' "
            "signal, raise learning_rate, or begin with easier prompts.",
        )
    loss = gain.now - c.now  # both differences have the same error
    lost_again = gain.rose and loss > CLEAR * gain.error and loss > LOST_GAIN * gain.change
    if c.fell or lost_again:
        yield (
            "reward fell",
            f"{gain.now:.3g} at best and {c.now:.3g} now: lower learning_rate, or hold the policy "
            "with beta or a smaller epsilon, and go back to a checkpoint before the fall.",
        )


def _groups(log: Log, weights: Mapping) -> Rung:
    reward, c = course(log, "reward"), course(log, "frac_reward_zero_std")
    if c and c.now >= NO_SIGNAL:
        yield (
            "groups without signal",
            f"in {c.now:.0%} of the groups all completions earned the same and taught nothing: "
            "choose prompts that are sometimes right, more num_generations, or a finer reward.",
        )
    c = course(log, "completions/clipped_ratio")
    if c and c.now >= TRUNCATED:
        yield (
            "mostly truncated",
            f"{c.now:.0%} of the completions ran into max_completion_length: raise it, ask for "
            "less in the prompt, or leave them out of the loss with mask_truncated_completions.",
        )
    c = course(log, "completions/mean_length")
    if c and reward and reward.still:
        change = f"from {c.before:.0f} to {c.now:.0f} tokens with no more reward"
        if c.now >= LONGER * c.before:
            use = "loss_type dr_grpo or dapo, or a reward against overlong answers"
            yield "length explosion", f"{change}: use {use}."
        if c.now <= SHORTER * c.before:
            look = "read the completions, and look for a reward that short ones earn unworked"
            yield "length collapse", f"{change}: {look}."


def _policy(log: Log, weights: Mapping) -> Rung:
    c = course(log, "entropy")
    if c and c.now <= min(ENTROPY_LOW, ENTROPY_LEFT * c.before):
        yield (
            "entropy collapse",
            f"{c.before:.2g} nats a token at first and {c.now:.2g} now, so that all completions of "
            "a prompt are nearly the same: raise epsilon_high, lower learning_rate, or stop here.",
        )
    c = course(log, "kl")
    if c and c.now >= KL_HIGH:
        yield (
            "KL blow-up",
            f"{c.now:.2g} nats a token from the reference model, {c.before:.2g} at first: lower "
            "learning_rate or raise beta, and go back to a checkpoint before it.",
        )
    # From the first step on, and with Unsloth's standby after each time that vLLM wakes up.
    apart = values(log[-window(log) :], "sampling/sampling_logp_difference/mean")
    if apart.size and apart.mean() >= SAMPLER_GAP:
        yield (
            "sampler and trainer apart",
            f"the sampler's log-probs lie {apart.mean():.2g} nats a token from the trainer's: keep "
            "vllm_importance_sampling_correction on, and give both the same precision and weights.",
        )


def _one_reward(log: Log, weights: Mapping[str, float]) -> Rung:
    courses = {}
    for key in log[-1]:
        name = key.removeprefix("rewards/").removesuffix("/mean")
        if key == f"rewards/{name}/mean" and (seen := course(log, key)):
            courses[name] = seen
    rises = {name: weights.get(name, 1.0) * seen.change for name, seen in courses.items()}
    total = sum(rise for rise in rises.values() if rise > 0)
    still = [name for name in courses if courses[name].still and _at_work(log, name)]
    driver = max(rises, key=rises.__getitem__, default="")
    if total and still and courses[driver].rose and rises[driver] >= DRIVER * total:
        others = " and ".join(f"{name} ({courses[name].now:.3g})" for name in still)
        yield (
            "one reward drives all",
            f"{driver} makes {rises[driver] / total:.0%} of the rise while {others} stood still: "
            "the policy learns what is easy to earn; lower that weight, or pay it only with the "
            "rest.",
        )


def _at_work(log: Log, name: str) -> bool:
    """Whether completions still differ in this reward, or never earned any of it."""
    spread = values(log[-window(log) :], f"rewards/{name}/std")
    never = name not in PENALTIES and not values(log, f"rewards/{name}/mean").any()
    return never or bool(spread.any())


def _hacking(log: Log, weights: Mapping) -> Rung:
    places = [i for i, row in enumerate(log) if row.get("heldout/strict") is not None]
    if len(places) < 3:
        return
    best = max(places, key=lambda i: log[i]["heldout/strict"])
    last = log[places[-1]]
    high, now = log[best]["heldout/strict"], last["heldout/strict"]
    problems = last.get("heldout/problems", HELDOUT_PROBLEMS)
    error = np.sqrt((high * (1 - high) + now * (1 - now)) / problems)
    since = course(log[max(0, best + 1 - window(log)) :], "reward")
    if high - now >= 2 * error and since and not since.still:
        yield (
            "train up, held-out down",
            f"the reward rose from {since.before:.3g} to {since.now:.3g} since step "
            f"{log[best]['step']} while held-out accuracy fell from {high:.1%} to {now:.1%}, the "
            "sign of reward hacking: read the completions that earn most, and fix the reward.",
        )


class LivePlot(AbstractContextManager, TrainerCallback):
    """The training curves with their alarms, drawn in place while the log grows.

    Left behind are one picture and one text in the notebook, `figures/training.png` and
    `alarms.json`. In a loop of one's own: `with LivePlot(…) as live`, and `live.update(log)`.
    `steps` are the run's, for the time left; `alert` is called with the alarms at each drawing.
    """

    alert: Callable[[Sequence[Alarm]], None] | None = None
    pause = 10.0  # seconds between two drawings, at the least
    share = 0.02  # of the time may go into drawing

    def __init__(self, run: Run, steps: int, weights: Mapping[str, float] | None = None):
        self.run, self.steps, self.weights = run, steps, weights
        self.log: Sequence[dict] = []
        self.shown: list = []  # display handles
        self.next, self.drawn = 0.0, 0  # when to draw again, and how many rows were drawn

    def __exit__(self, *_: Any) -> None:
        """The last state is drawn, also of a run that failed."""
        if len(self.log) > self.drawn:
            self._draw()

    def on_train_end(self, args, state, control, **kwargs):
        self.__exit__()

    def around(self, trainer: Any) -> "LivePlot":
        return self

    def update(self, log: Sequence[dict]) -> None:
        """Called with all rows after each step."""
        self.log = log
        if time.monotonic() >= self.next:
            started = time.monotonic()
            self._draw()
            spent = time.monotonic() - started
            self.next = time.monotonic() + max(self.pause, spent / self.share)

    def _draw(self) -> None:
        from IPython.display import Image, Markdown, display

        from lib.plots import pace, save, training_curves

        self.drawn = len(self.log)
        if not is_main_process():
            return
        path = self.run.figures / "training.png"
        save(training_curves(self.log, pace(self.log, self.steps), self.weights), path)
        raised = alarms(self.log, self.weights)
        write_json(self.run.folder / "alarms.json", [asdict(alarm) for alarm in raised])
        if self.alert:
            self.alert(raised)
        lines = [f"- **{a.name}** (step {a.step}): {a.sentence}" for a in raised]
        words = Markdown("\n".join(lines) or "No alarms.")
        page = (Image(path.read_bytes(), width=980), words)
        if not self.shown:
            self.shown = [display(part, display_id=True) for part in page]
        elif None not in self.shown:  # as outside a notebook
            for handle, part in zip(self.shown, page, strict=True):
                handle.update(part)
