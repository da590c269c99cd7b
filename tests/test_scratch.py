"""GRPO from scratch computes what the libraries do, and keeps the algorithm's own laws."""

import json
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import resolve
from lib.errors import Stopped
from lib.files import read_jsonl
from lib.runs import Run
from lib.scratch import (
    Batch,
    Totals,
    ValueHead,
    completion_logps,
    gae,
    group_advantages,
    grpo_loss,
    leave_one_out,
    loss_config,
    sample,
    set_advantages,
    step_advantages,
    value_loss,
)
from lib.scratch.loop import Learner
from lib.scratch.lora import (
    add_lora,
    live_weights,
    load_lora,
    lora_parameters,
    save_lora,
    without_lora,
)
from lib.tasks import load_problems, make_rows
from tests.conftest import CPU, move_adapter, python, refuses
from tests.lives import length

LAW = settings(max_examples=25, deadline=None)
TARGETS = ["q_proj", "down_proj"]


# --- against TRL ---------------------------------------------------------------


@pytest.fixture(scope="module")
def against_trl(first_layers, tmp_path_factory) -> dict:
    code = "import sys; sys.modules['vllm'] = None; "  # TRL would import it, for nothing
    code += "from tests.against_trl import main; main(*sys.argv[1:])"
    folder, environment = tmp_path_factory.mktemp("trl"), os.environ | {"TRITON_INTERPRET": "1"}
    said = python("-c", code, folder, first_layers, env=environment)
    return json.loads(said.splitlines()[-1])


def test_losses_and_gradients_are_trls(against_trl):
    """A step in two passes; lengths mixed, tokens clipped; float32, relative. By all weights each
    model's own forward pass rounds its gradient by 1 to 2e-5."""
    assert len(against_trl) == 2 * 6 + 1  # six losses with and without a KL term, and rloo's
    for name, case in against_trl.items():
        assert case["ours"] == pytest.approx(case["theirs"], rel=1e-5), name
        assert case["gradient"] < 1e-5 and case.get("weights", 0) < 5e-5, name
    assert sum("weights" in case for case in against_trl.values()) == 2


# --- laws ----------------------------------------------------------------------

numbers = st.floats(-4, 4, width=32)


@st.composite
def groups(draw) -> torch.Tensor:
    n, g = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    return torch.tensor(draw(st.lists(numbers, min_size=n * g, max_size=n * g))).view(n, g)


@given(groups(), st.floats(-100, 100), st.sampled_from(["group", "batch", "none"]))
@LAW
def test_shifting_the_rewards_changes_nothing(rewards_NG, shift, scale):
    rewards_NG = rewards_NG.double()
    if rewards_NG.std() < 1e-3:
        rewards_NG[0, 0] += 1  # what rounding leaves of equal rewards is not the matter here
    moved = group_advantages(rewards_NG + shift, scale)
    torch.testing.assert_close(moved, group_advantages(rewards_NG, scale), rtol=1e-6, atol=1e-6)


@given(st.integers(1, 3), st.integers(2, 6), numbers)
@LAW
def test_groups_of_equal_rewards_have_exactly_no_advantage(n, g, value):
    for scale in ("group", "batch", "none"):
        assert not group_advantages(torch.full((n, g), value), scale).any()


# --- with the model ------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(first_layers):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(first_layers, padding_side="left")


def load(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="module")
def model(first_layers):
    return load(first_layers)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Two prompts of different lengths, as ids and mask."""
    texts = ["What is 2 + 2?", "Name a colour of the sky in the evening."]
    return tuple(tokenizer(texts, return_tensors="pt", padding=True).values())


def drawn(model, prompts, seed: int, ends=None):
    """Two completions of each prompt: tokens_BT, mask_BT, logps_BT."""
    ends = torch.tensor([model.config.eos_token_id]) if ends is None else ends
    return sample(model, *prompts, 2, 6, ends, temperature=0.9, seed=seed)


def test_logps_are_transformers_with_and_without_padding(model, prompts):
    tokens_BT, mask_BT, sampled_BT = drawn(model, prompts, 1)
    ours_BT, entropy_BT, _ = completion_logps(model, *prompts, tokens_BT, mask_BT, 0.9)
    # The sampler's are the same, token by token from the cache.
    torch.testing.assert_close(sampled_BT * mask_BT, ours_BT * mask_BT, rtol=0, atol=1e-4)
    for i in range(4):
        prompt = prompts[0][i // 2][prompts[1][i // 2].bool()]
        said = tokens_BT[i][mask_BT[i].bool()]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, said])[None]).logits[0] / 0.9
        logps_TV = logits[len(prompt) - 1 : -1].log_softmax(-1)
        theirs = logps_TV.gather(1, said[:, None])[:, 0]
        torch.testing.assert_close(ours_BT[i, : len(said)], theirs, rtol=0, atol=1e-4)
        entropy = torch.distributions.Categorical(logits=logps_TV).entropy()
        torch.testing.assert_close(entropy_BT[i, : len(said)], entropy, rtol=0, atol=1e-3)


def test_sampling_repeats_with_the_seed_and_stops_at_the_end(model, prompts):
    first, again, other = (drawn(model, prompts, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(again, first)
    assert other.shape != again.shape or not torch.equal(other, again)
    # Whatever comes first ends the turn: one token, and no more.
    tokens_BT, mask_BT, _ = drawn(model, prompts, 1, torch.arange(model.config.vocab_size))
    assert tokens_BT.shape == (4, 1) and mask_BT.all()
    thirds = torch.arange(1, model.config.vocab_size, 3)
    tokens_BT, mask_BT, _ = drawn(model, prompts, 1, thirds)
    for row, mask in zip(tokens_BT.tolist(), mask_BT.tolist(), strict=True):
        assert mask == [int(all(token % 3 != 1 for token in row[:t])) for t in range(len(row))]
    assert not mask_BT.all()


# --- LoRA ----------------------------------------------------------------------


def logits_of(model, prompts) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=prompts[0], attention_mask=prompts[1]).logits


@pytest.fixture(scope="module")
def peft_folder(first_layers, tmp_path_factory):
    """An adapter of peft's that has moved."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    theirs = get_peft_model(load(first_layers), settings)
    move_adapter(theirs, 0.02)
    folder = tmp_path_factory.mktemp("peft")
    theirs.save_pretrained(folder)
    return folder


def test_forward_files_and_merge_are_pefts(first_layers, peft_folder, prompts, tmp_path):
    from peft import PeftModel

    ours = load(first_layers)
    base = logits_of(ours, prompts)
    load_lora(ours, peft_folder)
    save_lora(ours, tmp_path / "ours", str(first_layers))
    theirs = PeftModel.from_pretrained(load(first_layers), tmp_path / "ours")
    said = logits_of(ours, prompts)
    torch.testing.assert_close(said, logits_of(theirs, prompts), rtol=1e-5, atol=1e-4)
    assert (said - base).abs().max() > 0.1
    with without_lora(ours):
        assert torch.equal(logits_of(ours, prompts), base)
    merged = theirs.merge_and_unload().state_dict()
    for name, weight in live_weights(ours):
        torch.testing.assert_close(weight, merged[name], rtol=1e-6, atol=1e-7)


def test_lora_begins_as_the_base_model_and_trains_itself_alone(first_layers, prompts):
    model = load(first_layers)
    base = logits_of(model, prompts)
    names = add_lora(model, 4, 8, ["v_proj", "model.layers.0.mlp.up_proj"])
    assert len(names) == 3 and "model.layers.0.mlp.up_proj" in names
    assert torch.equal(logits_of(model, prompts), base)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 6 and all(name.endswith(("A_RI", "B_OR")) for name in trained)


def test_lora_on_what_is_not_there(model, peft_folder):
    with refuses("no-layer", "q_proj"):
        add_lora(model, 4, 8, ["query"])
    tiny = torch.nn.Sequential(torch.nn.Linear(2, 2))
    add_lora(tiny, 4, 8, ["0"])
    with refuses("other-adapter"):
        load_lora(tiny, peft_folder)


# --- the loop ------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner(first_layers):
    """`learner(folder, "a", max_steps=2)`: the loop in that run folder."""

    def make(folder, name: str, **changes) -> Learner:
        given = {"profile": "cpu", "output_dir": str(folder), "lora_targets": TARGETS}
        given |= {"max_completion_length": 6, "num_iterations": 2, "model": str(first_layers)}
        config = resolve("ci", given | changes, CPU)
        _, training, _, examples = load_problems(config)
        rows = make_rows(training, config.prompt_format, config.shots, examples)
        return Learner(config, rows, [length], [1.0], Run(folder / name))

    return make


@pytest.fixture(scope="module")
def whole(learner, tmp_path_factory) -> Learner:
    """Four updates from two batches of rollouts, in one go."""
    made = learner(tmp_path_factory.mktemp("runs"), "whole", max_steps=4, save_steps=2, beta=0.1)
    made.train()
    return made


def test_a_run_logs_keeps_and_moves(whole):
    log = read_jsonl(whole.run.train_log)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[0]["clip_ratio/region_mean"] == 0  # the ratio of a first update is 1
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6) and log[1]["kl"] > 0
    assert all(row["sampling/sampling_logp_difference/mean"] < 0.1 for row in log[::2])
    kept = sorted(path.name for path in whole.run.checkpoints.iterdir())
    assert kept == ["lora_epoch0_step2", "lora_epoch0_step4", "settings.json"]
    rows = read_jsonl(whole.run.rollouts / "step_00001.jsonl")
    kept = {"step", "id", "question", "completion", "rewards", "total", "advantage", "tokens"}
    assert len(rows) == 8 and kept | {"answer", "truncated"} == set(rows[0])
    assert rows[0]["total"] == rows[0]["rewards"]["length"] == len(rows[0]["completion"])
    assert not list(whole.run.folder.rglob("*.bin")) and not list(whole.run.folder.rglob("*.pt"))


def test_what_stops_a_run_is_said_and_resumed_it_is_the_run_that_was_not_stopped(
    learner, whole, tmp_path
):
    """By an interrupt in the first of a batch's two updates, a reward that raises, and NaN."""
    given = dict(max_steps=4, save_steps=50, beta=0.1, resume=True)
    made = learner(tmp_path, "stopped", **given)

    def interrupt(*_):
        once.remove()
        os.kill(os.getpid(), signal.SIGINT)

    once = made.optimizer.register_step_pre_hook(interrupt)
    with pytest.raises(Stopped, match=r"interrupted\. Step 2 is kept: resume goes on from it"):
        made.train()

    made = learner(tmp_path, "stopped", **given)
    made.rewards = [lambda **_: 1 / 0]
    with pytest.raises(Stopped, match=r"failed with ZeroDivisionError .*Step 2 is kept"):
        made.train()
    made.rewards, logps = [length], made.logps
    made.logps = lambda batch: [*(part * float("nan") for part in logps(batch)[:2]), None]
    with pytest.raises(Stopped, match=r"loss of step 3 is not a number \(nan\).*Step 2 is kept"):
        made.train()
    made.logps = logps
    made.train()

    def told(run: Run) -> list[dict]:
        timed = ("seconds", "time/rollouts")
        rows = read_jsonl(run.train_log)
        return [{key: value for key, value in row.items() if key not in timed} for row in rows]

    assert told(made.run) == told(whole.run)
    for ours, theirs in zip(lora_parameters(made.model), lora_parameters(whole.model), strict=True):
        assert torch.equal(ours, theirs)


def test_ppo_trains_its_value_head_beside_the_policy_and_resumes(learner, tmp_path):
    changes = dict(algorithm="ppo", save_steps=1, num_iterations=1, beta=0.1)
    made = learner(tmp_path, "ppo", max_steps=2, **changes)
    made.train()
    log = read_jsonl(made.run.train_log)
    assert all(row["value_loss"] > 0 and row["grad_norm"] > 0 for row in log)
    again = learner(tmp_path, "ppo", max_steps=2, resume=True, **changes)
    again.train()  # nothing is left to do: the last checkpoint is the state
    head, stored = made.value_head.linear, again.value_head.linear
    assert head.weight.abs().sum() > 0 and torch.equal(head.weight, stored.weight)


def test_a_changed_learning_rate_is_in_force_on_resume_and_the_schedule_goes_on(learner, tmp_path):
    changes = dict(max_steps=4, save_steps=2, num_iterations=1, lr_scheduler="linear")
    made = learner(tmp_path, "rate", learning_rate=1e-4, **changes)
    made.stop_asked = False
    for _ in made.steps():
        made.stop_asked = made.step == 2
    again = learner(tmp_path, "rate", learning_rate=2e-4, resume=True, **changes)
    again.train()
    rates = [row["learning_rate"] for row in read_jsonl(again.run.train_log)]
    assert rates == pytest.approx([1e-4, 0.75e-4, 1e-4, 0.5e-4])


@pytest.mark.parametrize(
    "changes", [{"top_p": 0.9}, {"loss_type": "sapo"}, {"resample": 2}], ids=str
)
def test_what_the_loop_does_not_do_is_said(learner, tmp_path, changes):
    with refuses("not-from-scratch"):
        learner(tmp_path, "bad", **changes)


# --- other baselines -----------------------------------------------------------

MASK_BT = torch.tensor([[1, 1, 1], [1, 1, 0]])
VALUES_BT = torch.tensor([[0.5, 1.0, 0.0], [0.2, 0.4, 9.0]])
REWARDS_BT = torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.0, 0.0]])


def test_rloo_compares_with_the_others_of_a_group_and_reinforce_across_prompts():
    assert leave_one_out(torch.tensor([[3.0, 0.0, 1.5]])).tolist() == [2.25, -2.25, 0.0]
    rewards_NG = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert step_advantages(rewards_NG).tolist() == [0.5, 0.5, -0.5, -0.5]
    assert not leave_one_out(rewards_NG).any()  # an easy prompt earns nothing by being easy


def test_gae_by_hand():
    """λ = 0.5, γ = 1: δ = r + V' − V, and A = δ + A'/2, from the end."""
    found = gae(REWARDS_BT, VALUES_BT, MASK_BT, 0.5)
    first = [0.5 + (-1.0 + 2.0 / 2) / 2, -1.0 + 2.0 / 2, 2.0]  # δ: 0.5, −1, 2
    second = [0.2 + 0.6 / 2, 0.6, 0.0]  # δ: 0.2, 0.6
    torch.testing.assert_close(found, torch.tensor([first, second]))


def test_the_value_loss_by_hand():
    """V moved by 0.5 with a clip of 0.2: the larger of the two errors, halved."""
    mask_BT = torch.ones(1, 2)
    batch = Batch(None, None, None, mask_BT)
    batch.old_values_BT, batch.returns_BT = torch.zeros(1, 2), torch.ones(1, 2)
    values_BT = torch.tensor([[0.5, 0.1]], requires_grad=True)
    loss = value_loss(values_BT, batch, Totals(1, 2, 2), 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 0.9**2) / 2)
    loss.backward()
    # Beyond the clip it stands still; within, it goes towards the return.
    torch.testing.assert_close(values_BT.grad, torch.tensor([[0.0, -0.45]]))


def test_the_value_head_learns_and_leaves_the_policy_alone():
    torch.manual_seed(0)
    states = torch.randn(2, 3, 8, requires_grad=True)
    head = ValueHead(8)
    assert not head(states).any()  # expects nothing yet
    batch = Batch(None, None, None, MASK_BT, old_values_BT=torch.zeros(2, 3))
    batch.returns_BT = torch.ones(2, 3)
    value_loss(head(states), batch, Totals(2, 5, 3), 0.2).backward()
    assert states.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in head.parameters())


def settings_of(algorithm: str, beta: float = 0.0, **more):
    given = {"algorithm": algorithm, "beta": beta, "num_generations": 2, "prompts_per_step": 1}
    return resolve(None, {**given, "micro_batch": 2, **more}, CPU)


def a_batch() -> Batch:
    torch.manual_seed(0)
    old_BT, ref_BT = -torch.rand(2, 2, 3)
    return Batch(
        *(None, None, torch.zeros(2, 3).long(), MASK_BT),
        old_logps_BT=old_BT,
        ref_logps_BT=ref_BT,
        old_values_BT=VALUES_BT * MASK_BT,
    )


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce"])
def test_the_kl_is_a_part_of_the_reward(algorithm):
    rewards_B, batch = torch.tensor([1.0, 0.0]), a_batch()
    apart_B = ((batch.old_logps_BT - batch.ref_logps_BT) * MASK_BT).sum(1)
    set_advantages(batch, rewards_B, settings_of(algorithm, 0.5))
    compare = leave_one_out if algorithm == "rloo" else step_advantages
    expected = compare((rewards_B - 0.5 * apart_B)[None])
    torch.testing.assert_close(batch.advantages_BT[:, 0], expected)
    assert loss_config(settings_of(algorithm, 0.5)).beta == 0  # and not of the loss again


def test_ppos_loss_is_the_clipped_mean_over_tokens():
    """arXiv:1707.06347, eq. 7, token by token."""
    batch, config = a_batch(), settings_of("ppo")
    set_advantages(batch, torch.tensor([1.0, 0.0]), config)
    real = batch.advantages_BT[MASK_BT.bool()]
    assert [real.mean().item(), real.std().item()] == pytest.approx([0, 1], abs=1e-6)
    logps_BT = batch.old_logps_BT + torch.tensor([[0.5, -0.5, 0.0], [0.5, -0.5, 0.0]])
    ratio_BT, advantages_BT = (logps_BT - batch.old_logps_BT).exp(), batch.advantages_BT
    clipped_BT = torch.minimum(ratio_BT * advantages_BT, ratio_BT.clamp(0.8, 1.2) * advantages_BT)
    loss = grpo_loss(logps_BT, batch, Totals(2, 5, 3), loss_config(config))
    torch.testing.assert_close(loss, -clipped_BT[MASK_BT.bool()].sum() / 5)


def test_reinforces_gradient_is_that_of_the_whole_completions_log_probability():
    """− A ∇ Σ log π, the mean over completions, however long they are (Williams 1992)."""
    batch, config = a_batch(), settings_of("reinforce")
    set_advantages(batch, torch.tensor([1.0, 0.0]), config)
    leaf = batch.old_logps_BT.clone().requires_grad_()
    grpo_loss(leaf, batch, Totals(2, 5, 3), loss_config(config)).backward()
    torch.testing.assert_close(leaf.grad, -batch.advantages_BT / 2 * MASK_BT)
