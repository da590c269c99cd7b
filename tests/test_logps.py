"""A prompt computed once for its group gives the ordinary loss and gradient."""

import peft
import pytest
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from lib.models import load_tokenizer, widen_head
from lib.training.logps import completion_scores, plain_logps, why_not_shared

GROUP, PROMPTS, PROMPT, COMPLETION = 3, 2, 9, 7
SEQUENCE = dict(importance_sampling_level="sequence")
LOSSES = {
    **{loss: dict(loss_type=loss) for loss in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")},
    "gspo": dict(loss_type="grpo", **SEQUENCE),
}
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
CASES = [*((loss, 0.0) for loss in LOSSES | FURTHER), ("grpo", 0.1), ("gspo", 0.1)]


def adapted(folder, dtype=torch.float32):
    """A model with an adapter that does something."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False
    )
    return peft.get_peft_model(base, settings).train()


@pytest.fixture(scope="module")
def model(first_layers):
    return adapted(first_layers)


@pytest.fixture(scope="module")
def tokenizer(first_layers):
    return load_tokenizer(first_layers)


@pytest.fixture
def suite_trainer(model, tokenizer, tmp_path, monkeypatch):
    """`suite_trainer("dapo", 0.0)`: ours with that loss."""
    from lib.training import GRPOTrainer
    from lib.training import trainer as module

    monkeypatch.setattr(module, "why_not_shared", lambda _: "")  # its own test tries it out

    def make(loss: str, beta: float, checkpointing: bool = False):
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        arguments = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=checkpointing,
            per_device_train_batch_size=GROUP * PROMPTS,
            num_generations=GROUP,
            max_completion_length=COMPLETION,
            temperature=0.9,
            beta=beta,
            **(LOSSES | FURTHER)[loss],
        )
        rows = Dataset.from_list([{"prompt": "Hello"}] * 2)
        trainer = GRPOTrainer(model, lambda **_: [0.0], arguments, rows, processing_class=tokenizer)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return trainer

    return make


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
    trained = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_columns_of_padding_alone_are_not_computed(model, batch, monkeypatch):
    """In a pass whose rows are all shorter than the batch's longest."""
    short = {name: value[3:] for name, value in batch.items() if name.endswith(("_ids", "_mask"))}
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **given: seen.append(given["input_ids"].shape) or forward(**given)
    )
    ids, mask = whole(short)
    logps, entropies = plain_logps(model, ids, mask, COMPLETION, 0.5)
    assert seen == [(3, 5 + 6)], "4 tokens of padding before, and 1 behind"
    with torch.no_grad():
        logits = forward(input_ids=ids, attention_mask=mask).logits
    plain = (logits[:, PROMPT - 1 : -1] / 0.5).log_softmax(-1)
    real = short["completion_mask"]
    expected = plain.gather(-1, short["completion_ids"][..., None])[..., 0] * real
    assert torch.allclose(logps, expected, atol=5e-4)
    assert torch.allclose(entropies, -(plain.exp() * plain).sum(-1) * real, atol=5e-4)
    mask[:, PROMPT:] = 0  # as where all that was cut off is left out
    assert not plain_logps(model, ids, mask, COMPLETION)[0].any()


@pytest.mark.parametrize(("temperature", "full"), [(1.0, False), (0.7, False), (1.0, True)])
def test_log_probs_and_their_gradient_are_the_ordinary_ones(
    model, first_layers, batch, temperature, full
):
    """Of an adapter; and of all weights, the output layer's among them."""
    if full:
        model = AutoModelForCausalLM.from_pretrained(first_layers, dtype=torch.float32).train()
    ours, entropies = completion_scores(model, *whole(batch), COMPLETION, temperature)
    plain = ordinary_logps(model, batch, temperature)
    assert torch.allclose(ours, plain, atol=2e-4)
    slopes = [gradient(model, (logps * batch["noise"][0]).sum()) for logps in (ours, plain)]
    assert relative(*slopes) < 1e-4
    assert (entropies[batch["completion_mask"].bool()] > 0).all()


def test_entropies_have_their_gradient_where_a_bonus_needs_it(model, batch):
    ids, mask = whole(batch)
    _, entropies = completion_scores(model, ids, mask, COMPLETION, entropy_gradient=True)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, PROMPT - 1 : -1]
    plain = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) * batch["completion_mask"]
    slopes = [gradient(model, (each * batch["noise"][0]).sum()) for each in (entropies, plain)]
    assert relative(*slopes) < 1e-3


def test_each_prompt_is_read_once_and_no_token_in_vain(model, batch):
    """Two prompts, then the completions but for their last tokens; a group that is not wanted is
    not read."""
    read, base = [], model.get_base_model().base_model
    hook = base.register_forward_pre_hook(
        lambda _, args, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        completion_scores(model, *whole(batch), COMPLETION)
        wanted_B = torch.tensor([False] * 3 + [True] * 3)
        completion_scores(model, *whole(batch), COMPLETION, wanted_B=wanted_B)
    finally:
        hook.remove()
    assert read == [(2, 9), (6, 6), (1, 5), (3, 5)]


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.bfloat16, False), (torch.float32, True)])
def test_a_wide_head_takes_its_product_in_32_bit(first_layers, batch, dtype, mixed):
    model = adapted(first_layers, dtype)
    head, seen = model.get_base_model().get_output_embeddings(), []

    def logps(remember: bool = False) -> torch.Tensor:
        """Of the real tokens; what the head was given is remembered."""
        hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed), torch.no_grad():
            scores_BC = completion_scores(model, *whole(batch), COMPLETION)[0]
        hook.remove()
        return scores_BC[batch["completion_mask"].bool()]

    def in_32_bit() -> torch.Tensor:
        logits_MV = seen.pop().float() @ head.weight.float().T
        targets_M = batch["completion_ids"][batch["completion_mask"].bool()]
        return logits_MV.log_softmax(-1).gather(-1, targets_M[:, None])[:, 0]

    assert (logps() - in_32_bit()).abs().mean() > 1e-3
    widen_head(model)
    assert (logps() - in_32_bit()).abs().max() < 1e-4
    assert model(whole(batch)[0]).logits.dtype == torch.float32


@pytest.mark.parametrize(("loss", "beta"), CASES)
def test_each_loss_and_its_gradient_equal_trls(suite_trainer, model, batch, loss, beta):
    """A dead group among them, old log-probs that differ, and a reference model."""
    trainer = suite_trainer(loss, beta)
    before = ordinary_logps(model, batch, 0.9).detach()
    inputs = {key: value for key, value in batch.items() if key != "noise"} | {
        "old_per_token_logps": before + 0.2 * batch["noise"][0],
        "ref_per_token_logps": before + 0.2 * batch["noise"][1],
    }
    found = {}
    for shares in (True, False):
        trainer.shares_prompts = shares
        value = trainer.compute_loss(trainer.model, inputs)
        found[shares] = value.item(), gradient(trainer.model, value)
    # vespo multiplies the ratios of a completion's tokens, and so their rounding.
    near = 2e-3 if loss == "vespo" else 1e-4
    assert found[True][0] == pytest.approx(found[False][0], rel=near, abs=1e-5)
    assert relative(found[True][1], found[False][1]) < near


def test_the_sampler_is_compared_where_a_kernel_scores(suite_trainer, batch, monkeypatch):
    """As on a GPU where no prompt is shared: TRL's kernel, which no CPU runs, is replaced here."""
    trainer = suite_trainer("dapo", 0.0)
    trainer.shares_prompts = trainer.vllm_importance_sampling_correction = False
    ours = ordinary_logps(trainer.model, batch, trainer.temperature)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    name = "_get_per_token_logps_and_entropies"
    monkeypatch.setattr(trl.GRPOTrainer, name, lambda *_, **__: (ours, ours.detach(), None))
    inputs = {key: value for key, value in batch.items() if key != "noise"}
    trainer.compute_loss(trainer.model, inputs | {"sampling_per_token_logps": ours.detach() + 0.25})
    apart = trainer._metrics["train"]["sampling/sampling_logp_difference/mean"]
    assert apart == [pytest.approx(0.25, rel=1e-3)]


def test_a_step_without_signal_trains_nothing(suite_trainer, batch):
    trainer = suite_trainer("dapo", 0.0)
    trainer.shares_prompts = True
    inputs = {key: value for key, value in batch.items() if key != "noise"}
    loss = trainer.compute_loss(trainer.model, inputs | {"advantages": torch.zeros(6)})
    assert not gradient(trainer.model, loss).any()


def test_completions_without_advantage_are_left_out_of_the_means(suite_trainer, batch):
    trainer = suite_trainer("dapo", 0.0)
    trainer.shares_prompts, trainer.vllm_importance_sampling_correction = True, False
    settings = COMPLETION, trainer.temperature
    logps, entropies = completion_scores(trainer.model, *whole(batch), *settings)
    inputs = {key: value for key, value in batch.items() if key != "noise"}
    trainer.compute_loss(
        trainer.model, inputs | {"sampling_per_token_logps": logps.detach() + 0.25}
    )
    wanted = batch["completion_mask"].bool() & (batch["advantages"] != 0)[:, None]
    logged = trainer._metrics["train"]
    assert logged["entropy"] == [pytest.approx(entropies[wanted].mean().item(), rel=1e-3)]
    apart = logged["sampling/sampling_logp_difference/mean"]
    assert apart == [pytest.approx(0.25, rel=1e-3)]


def test_groups_stay_whole_in_a_pass_and_old_log_probs_are_the_first_passs(suite_trainer):
    """TRL shuffles completions over passes; ours do not, and the batch is TRL's otherwise."""
    trainer = suite_trainer("dapo", 0.0)
    trainer.args.steps_per_generation, trainer.args.per_device_train_batch_size = 2, GROUP
    trainer.shares_prompts, trainer._step, trainer._buffered_inputs = True, 0, None
    trainer.reward_funcs[0] = lambda completions, **_: [float(i) for i in range(len(completions))]
    asked = [{"prompt": "Say one."}] * GROUP + [{"prompt": "And now two."}] * GROUP
    first = trainer._prepare_inputs(asked)
    trainer._step = 1
    second = trainer._prepare_inputs(asked)
    assert first["num_items_in_batch"] == second["num_items_in_batch"]
    for part in (first, second):
        assert len(part["prompt_ids"].unique(dim=0)) == 1 and len(part["prompt_ids"]) == GROUP
        assert part["advantages"].tolist() == pytest.approx([-1, 0, 1], abs=1e-3)
    trainer._step, trainer.num_iterations = 2, 2
    assert trainer._prepare_inputs(asked) is first, "the batch's second update"


def test_sharing_is_refused_where_a_model_computes_in_its_own_way(model):
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

    small = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    assert why_not_shared(model) == ""
    gemma = Gemma2ForCausalLM(Gemma2Config(**small, **heads, final_logit_softcapping=0.05))
    assert why_not_shared(gemma) != ""
    mistral = MistralForCausalLM(MistralConfig(**small, **heads, sliding_window=8))
    assert why_not_shared(mistral) == ""  # transformers' cache knows the window


def test_with_gradient_checkpointing_nothing_is_shared(suite_trainer):
    trainer = suite_trainer("dapo", 0.0, checkpointing=True)
    assert not trainer.shares_prompts and "checkpointing" in trainer.not_shared


def test_a_prompt_kept_without_its_gradient_is_noticed(embedded, monkeypatch):
    from transformers import DynamicCache

    select = DynamicCache.batch_select_indices

    def detached(cache, indices):
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        select(cache, indices)

    monkeypatch.setattr(DynamicCache, "batch_select_indices", detached)
    assert "no gradient" in why_not_shared(adapted(embedded))
