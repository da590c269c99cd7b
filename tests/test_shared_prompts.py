"""A prompt computed once for its group gives the ordinary loss and gradient."""

from contextlib import nullcontext

import pytest
import torch

from lib.output_layer import widen_head
from lib.training.lean_layers import make_lean
from lib.training.oom import split_rows
from lib.training.sampler_correction import sampling_ratio
from lib.training.shared_prompts import completion_scores, pack, why_not_shared
from lib.training.token_logps import plain_logps
from lib.training.trainer import trainer_class
from tests.conftest import CPU, SMALL

GROUP, PROMPTS, PROMPT, COMPLETION = 3, 2, 9, 7
SEQUENCE = dict(importance_sampling_level="sequence")
LOSSES = {
    **{loss: dict(loss_type=loss) for loss in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")},
    "gspo": dict(loss_type="grpo", **SEQUENCE),
}
# Without a reference model: the path is the same with one.
FURTHER = {
    "sapo": dict(loss_type="sapo", sapo_temperature_neg=1.3),
    "luspo": dict(loss_type="luspo", **SEQUENCE),
    "vespo": dict(loss_type="vespo", vespo_k_neg=2.5),
    "delta": dict(loss_type="grpo", delta=1.21),
    "off-policy mask": dict(off_policy_mask_threshold=0.01),
    "top entropies": dict(top_entropy_quantile=0.4),
    "entropy bonus": dict(entropy_coef=0.1),
    "both": dict(top_entropy_quantile=0.4, entropy_coef=0.1, loss_type="bnpo"),
}
CASES = [*((loss, beta) for loss in LOSSES for beta in (0.0, 0.1)), *((f, 0.0) for f in FURTHER)]


def adapted(folder, dtype=torch.float32, lean=True):
    """The embedded model with an adapter that does something."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False
    )
    model = peft.get_peft_model(base, settings).train()
    if lean:
        assert make_lean(model) == 7 * base.config.num_hidden_layers
    return model


@pytest.fixture(scope="module")
def model(embedded):
    return adapted(embedded)


@pytest.fixture(scope="module")
def batch() -> dict:
    """Two groups of three: prompts padded on the left, completions of all lengths on the right."""
    draw = torch.Generator().manual_seed(1)
    rows = GROUP * PROMPTS
    prompts = torch.randint(100, 40_000, (PROMPTS, PROMPT), generator=draw)
    prompt_mask = torch.ones_like(prompts)
    prompts[1, :4] = prompt_mask[1, :4] = 0
    completions = torch.randint(100, 40_000, (rows, COMPLETION), generator=draw)
    lengths = torch.tensor([7, 1, 4, 2, 6, 3])
    mask = (torch.arange(COMPLETION) < lengths[:, None]).long()
    noise = torch.randn(2, rows, COMPLETION, generator=draw)
    return {
        "prompt_ids": prompts.repeat_interleave(GROUP, 0),
        "prompt_mask": prompt_mask.repeat_interleave(GROUP, 0),
        "completion_ids": completions * mask,
        "completion_mask": mask,
        "advantages": torch.tensor([1.3, -0.4, -0.9, 0.0, 0.0, 0.0]),
        "num_items_in_batch": lengths.sum(),
        "noise": noise,
    }


def whole(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    return ids, torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)


def ordinary_logps(model, batch: dict, temperature: float = 1.0) -> torch.Tensor:
    return plain_logps(model, *whole(batch), COMPLETION, temperature)[0]


def gradient(model, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]
    )
    model.zero_grad()
    return found


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_a_row_holds_each_prompt_once_and_no_padding(batch):
    packed = pack(*whole(batch), COMPLETION, torch.ones(6, dtype=torch.bool))
    lengths = batch["completion_mask"].sum(1)
    assert packed.ids_1N.shape == (1, 9 + 5 + (lengths - 1).sum())
    assert (
        packed.targets_M.tolist()
        == batch["completion_ids"][
            lengths.new_tensor([[c < n for c in range(COMPLETION)] for n in lengths]).bool()
        ].tolist()
    )
    assert packed.positions_1N[0, :11].tolist() == [*range(9), 9, 10]
    assert packed.positions_1N.max() == 9 + 7 - 2


def test_nothing_wanted_is_nothing_computed(model, batch):
    logps, entropies, _ = completion_scores(
        model, *whole(batch), COMPLETION, wanted_B=torch.zeros(6, dtype=torch.bool)
    )
    assert not logps.any() and not entropies.any() and logps.requires_grad


def test_columns_of_padding_alone_are_not_computed(model, batch, monkeypatch):
    """In a pass whose rows are all shorter than the batch's longest."""
    short = {name: batch[name][3:] for name in ("prompt_ids", "completion_ids")}
    short |= {name: batch[name][3:] for name in ("prompt_mask", "completion_mask")}
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **given: seen.append(given["input_ids"].shape) or forward(**given)
    )
    logps, entropies = plain_logps(model, *whole(short), COMPLETION)
    assert seen == [(3, 5 + 6)], "4 tokens of padding before, and 1 behind"
    with torch.no_grad():
        logits = forward(input_ids=whole(short)[0], attention_mask=whole(short)[1]).logits
    plain = logits[:, PROMPT - 1 : -1].log_softmax(-1)
    mask = short["completion_mask"]
    expected = plain.gather(-1, short["completion_ids"][..., None])[..., 0] * mask
    assert torch.allclose(logps, expected, atol=2e-4)
    assert entropies.shape == mask.shape and not entropies[mask == 0].any()


@pytest.mark.parametrize("shares", [True, False])
def test_frozen_weights_get_no_gradient(model, batch, shares):
    compute = completion_scores if shares else plain_logps
    compute(model, *whole(batch), COMPLETION)[0].sum().backward()
    held = [name for name, weight in model.named_parameters() if weight.grad is not None]
    model.zero_grad()
    assert held and all("lora_" in name for name in held)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_their_gradient_are_the_ordinary_ones(model, batch, temperature):
    weights = batch["noise"][0]
    ours, entropies, _ = completion_scores(model, *whole(batch), COMPLETION, temperature)
    plain = ordinary_logps(model, batch, temperature)
    assert torch.allclose(ours, plain, atol=2e-4)
    assert (
        relative(gradient(model, (ours * weights).sum()), gradient(model, (plain * weights).sum()))
        < 1e-4
    )
    assert (entropies[batch["completion_mask"].bool()] > 0).all()


def test_long_completions_take_the_fused_attention_and_agree(model, batch, monkeypatch):
    ours, *_ = completion_scores(model, *whole(batch), COMPLETION)
    monkeypatch.setattr("lib.training.shared_prompts.FEW_SCORES", 0)
    fused, *_ = completion_scores(model, *whole(batch), COMPLETION)
    assert torch.allclose(ours, fused, atol=2e-4)


def test_the_head_in_small_parts_gives_the_same(model, batch, monkeypatch):
    ours, entropies, _ = completion_scores(model, *whole(batch), COMPLETION)
    monkeypatch.setattr("lib.training.token_logps.HEAD_ROWS", 5)
    monkeypatch.setattr("lib.training.token_logps.CACHED_ROWS", 2)
    parts, in_parts, _ = completion_scores(model, *whole(batch), COMPLETION)
    assert torch.allclose(ours, parts, atol=2e-4) and torch.allclose(entropies, in_parts, atol=1e-3)


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.bfloat16, False), (torch.float32, True)])
def test_a_wide_head_takes_its_product_in_32_bit(embedded, batch, dtype, mixed):
    model = adapted(embedded, dtype, lean=not mixed)
    causal = model.get_base_model()
    read = []
    causal.base_model.register_forward_hook(lambda *seen: read.append(seen[-1].last_hidden_state))
    packed = pack(*whole(batch), COMPLETION, torch.ones(6, dtype=torch.bool))

    def logps() -> tuple[torch.Tensor, torch.Tensor]:
        """Of the real tokens, and what the same hidden states give in 32 bit."""
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found_BC, *_ = completion_scores(model, *whole(batch), COMPLETION)
        hidden_MD = read.pop()[0][packed.before_M].float()
        logits_MV = hidden_MD @ causal.get_output_embeddings().weight.float().T
        wanted_M = logits_MV.log_softmax(-1).gather(-1, packed.targets_M[:, None])[:, 0]
        return found_BC[packed.rows_M, packed.columns_M], wanted_M

    found_M, wanted_M = logps()
    assert (found_M - wanted_M).abs().mean() > 1e-3
    widen_head(model)
    found_M, wanted_M = logps()
    assert (found_M - wanted_M).abs().max() < 1e-4
    slope, wanted = (gradient(model, logps()[i].sum()) for i in (0, 1))
    assert relative(slope, wanted) < 0.02  # of bf16, on the way back
    assert model(whole(batch)[0]).logits.dtype == torch.float32


def test_full_fine_tuning_gives_the_output_layer_its_gradient(embedded, batch):
    from transformers import AutoModelForCausalLM

    whole_model = AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32).train()
    weights = batch["noise"][0]
    ours, *_ = completion_scores(whole_model, *whole(batch), COMPLETION)
    grad = gradient(whole_model, (ours * weights).sum())
    plain = gradient(whole_model, (ordinary_logps(whole_model, batch) * weights).sum())
    assert relative(grad, plain) < 1e-4


def suite_trainer(model, folder, loss: str, beta: float):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    arguments = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=GROUP * PROMPTS,
        num_generations=GROUP,
        max_completion_length=COMPLETION,
        temperature=0.9,
        beta=beta,
        **(LOSSES | FURTHER)[loss],
    )
    rows = Dataset.from_list([{"prompt": "Hello"}] * 2)
    tokenizer = AutoTokenizer.from_pretrained(model.get_base_model().name_or_path)
    trainer = trainer_class()(model, lambda **_: [0.0], arguments, rows, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


@pytest.mark.parametrize(("loss", "beta"), CASES)
def test_each_loss_and_its_gradient_equal_trls(model, batch, tmp_path, loss, beta):
    """A dead group among them, old log-probs that differ, and a reference model."""
    trainer = suite_trainer(model, tmp_path, loss, beta)
    before = ordinary_logps(model, batch, 0.9).detach()
    inputs = {key: value for key, value in batch.items() if key != "noise"} | {
        "old_per_token_logps": before + 0.2 * batch["noise"][0],
        "ref_per_token_logps": before + 0.2 * batch["noise"][1],
    }
    found = {}
    for shares in (True, False):
        trainer.shares_prompts = shares
        value = trainer._compute_loss(trainer.model, inputs)
        found[shares] = value.item(), gradient(trainer.model, value)
    # vespo multiplies the ratios of a completion's tokens, and so their rounding.
    near = 2e-3 if loss == "vespo" else 1e-4
    assert found[True][0] == pytest.approx(found[False][0], rel=near, abs=1e-5)
    assert relative(found[True][1], found[False][1]) < near


def test_old_log_probs_are_those_of_the_first_pass(model, batch, tmp_path):
    """The second update from one batch compares with the policy before the first."""
    trainer = suite_trainer(model, tmp_path, "dapo", 0.0)
    inputs = {key: value for key, value in batch.items() if key != "noise"}
    trainer.shares_prompts = True
    trainer._compute_loss(trainer.model, inputs)
    before = plain_logps(model, *whole(batch), COMPLETION, 0.9)[0].detach()
    signal = inputs["advantages"] != 0
    assert torch.allclose(inputs["old_per_token_logps"][signal], before[signal], atol=2e-4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight *= 1.02
    found = {}
    for shares in (True, False):
        trainer.shares_prompts = shares
        old = {} if shares else {"old_per_token_logps": before}
        value = trainer._compute_loss(trainer.model, inputs | old)
        found[shares] = gradient(trainer.model, value)
    assert relative(found[True], found[False]) < 1e-4


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
@pytest.mark.parametrize("shares", [True, False])
def test_what_the_sampler_does_otherwise_is_corrected_as_trl_does(
    model, batch, tmp_path, mode, shares
):
    """The gradient is TRL's with its ratios, which it has from a pass of its own; also in a second
    update, when the policy has moved."""
    trainer = suite_trainer(model, tmp_path, "dapo", 0.0)
    before = ordinary_logps(model, batch, 0.9).detach()
    sampled = before + (0.3 if mode == "token_truncate" else 0.03) * batch["noise"][0]
    inputs = {key: value for key, value in batch.items() if key != "noise"}
    apart = (before - sampled) * inputs["completion_mask"]
    ratio = sampling_ratio(apart, mode, None, 1.2)
    assert ratio.unique().numel() > 2
    own = inputs | {"sampling_per_token_logps": sampled}
    own |= {} if shares else {"old_per_token_logps": before}  # which TRL then computes
    trls = inputs | {"old_per_token_logps": before, "importance_sampling_ratio": ratio}
    trainer.vllm_importance_sampling_correction = True
    trainer.args.vllm_importance_sampling_mode = mode
    trainer.args.vllm_importance_sampling_clip_max = 1.2
    for scale in (1.02, 1.0):
        trainer.rollouts, trainer.shares_prompts = None, False
        trainer.use_vllm = True
        theirs = gradient(trainer.model, trainer._compute_loss(trainer.model, trls))
        trainer.use_vllm = False
        trainer.rollouts, trainer.shares_prompts = "an engine's", shares
        value = trainer._compute_loss(trainer.model, own)
        assert not trainer.use_vllm
        assert relative(gradient(trainer.model, value), theirs) < 2e-4
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight *= scale
    log = trainer._metrics["train"]
    assert 0 < log["sampling/sampling_logp_difference/mean"][0] < 1
    assert 0 < log["sampling/importance_sampling_ratio/mean"][0] < 1.2


def test_several_updates_from_one_batch_train(embedded, tmp_path):
    """num_iterations 2, whole: rollouts by transformers, two optimizer steps from one batch."""
    from lib.config import resolve
    from lib.models import load_policy
    from lib.runs import Run, read_jsonl
    from lib.training.run import make_trainer, train

    config = resolve("ci", SMALL | dict(num_iterations=2, max_steps=2), CPU)
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    asked = [{"role": "user", "content": "Say a number."}]
    rows = [{"prompt": asked, "id": str(i), "answer": ""} for i in range(2)]

    def reward(completions, **_):
        return [float(i % 2) for i, _ in enumerate(completions)]

    trainer = make_trainer(load_policy(config), rows, [reward], [1.0], config, run)
    train(trainer, config, run)
    log = read_jsonl(run.train_log)
    assert trainer.state.global_step == 2
    assert [row["step"] for row in log] == [1] and log[0]["grad_norm"] > 0
    assert len(list(run.rollouts.iterdir())) == 1, "one batch for both updates"


def test_a_step_without_signal_trains_nothing(model, batch, tmp_path):
    trainer = suite_trainer(model, tmp_path, "dapo", 0.0)
    trainer.shares_prompts = True
    inputs = {key: value for key, value in batch.items() if key != "noise"}
    loss = trainer._compute_loss(trainer.model, inputs | {"advantages": torch.zeros(6)})
    assert not gradient(trainer.model, loss).any()


def test_lean_layers_compute_what_pefts_do(embedded, batch):
    lean, plain = adapted(embedded), adapted(embedded, lean=False)
    norms = [m for m in lean.modules() if type(m).__name__ == "LlamaRMSNorm"]
    assert len(norms) == 61 and all("forward" in vars(norm) for norm in norms)
    weights = batch["noise"][0]
    ours, pefts = (ordinary_logps(model, batch) for model in (lean, plain))
    assert torch.allclose(ours, pefts, atol=2e-4)
    assert (
        relative(gradient(lean, (ours * weights).sum()), gradient(plain, (pefts * weights).sum()))
        < 1e-4
    )
    for model in (lean, plain):
        torch.manual_seed(1)
        model.add_adapter("ref", model.peft_config["default"])
        model.set_adapter("ref")
    with torch.no_grad():
        other = ordinary_logps(lean, batch)
        assert torch.allclose(other, ordinary_logps(plain, batch), atol=2e-4)
        assert not torch.allclose(other, ours, atol=0.1)
    with lean.disable_adapter(), plain.disable_adapter(), torch.no_grad():
        bare = ordinary_logps(lean, batch)
        assert torch.allclose(bare, ordinary_logps(plain, batch), atol=2e-4)
        assert not torch.allclose(bare, ours, atol=0.1)


def test_sharing_is_refused_where_a_model_attends_in_its_own_way(model):
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

    small = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    assert why_not_shared(model, 1024) == ""
    gemma = Gemma2ForCausalLM(Gemma2Config(**small, **heads))
    assert "caps its scores" in why_not_shared(gemma, 64)
    mistral = MistralForCausalLM(MistralConfig(**small, **heads, sliding_window=32))
    assert why_not_shared(mistral, 32) == ""
    assert "sees 32 tokens at a time" in why_not_shared(mistral, 64)


def test_the_trial_finds_a_model_that_ignores_the_packing(model, monkeypatch):
    monkeypatch.setattr("lib.training.shared_prompts.shared_attention", nullcontext)
    assert "attends in its own way" in why_not_shared(model, 1024)


def test_a_batch_is_cut_into_passes_with_its_groups_whole(batch):
    parts = split_rows({**batch, "nothing": None}, 3)
    assert [part["advantages"].tolist() for part in parts] == [
        batch["advantages"][:3].tolist(),
        batch["advantages"][3:].tolist(),
    ]
    assert all(part["num_items_in_batch"] == 23 and part["nothing"] is None for part in parts)
