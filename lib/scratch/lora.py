"""LoRA (Hu et al. 2021, arXiv:2106.09685) on any linear layer, in the files that peft reads.

    add_lora(model, r=16, alpha=32, targets=["q_proj", "v_proj"])   # freezes all but A and B
    with without_lora(model):                                       # the model as it was
        ...
    save_lora(model, folder)                                        # A and B alone

Shapes: I inputs and O outputs of a layer, R the rank.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.errors import BadInput
from lib.files import read_json


class LoraLinear(nn.Module):
    """y = W x + (alpha / R) B A x, with W frozen (eq. 3 of the paper; sec. 4.1 for the scale).

    A and B are kept in 32 bit, since an update is small against bf16's steps, and multiply in the
    layer's own precision.
    """

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.base, self.scale, self.active = base, alpha / r, True
        self.dropout = nn.Dropout(dropout)
        like = dict(device=base.weight.device, dtype=torch.float32)
        self.A_RI = nn.Parameter(torch.empty(r, base.in_features, **like))
        self.B_OR = nn.Parameter(torch.zeros(base.out_features, r, **like))  # begins as W alone
        nn.init.kaiming_uniform_(self.A_RI, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.active:
            return y
        inner = nn.functional.linear(self.dropout(x), self.A_RI.to(x.dtype))
        return y + self.scale * nn.functional.linear(inner, self.B_OR.to(x.dtype))

    def merged(self) -> Tensor:
        """W + (alpha / R) B A, rounded once."""
        weight = self.base.weight
        a, b = self.A_RI.to(weight.dtype), self.B_OR.to(weight.dtype)
        return torch.addmm(weight, b, a, alpha=self.scale)


def add_lora(
    model: nn.Module, r: int, alpha: float, targets: Sequence[str], dropout: float = 0.0
) -> list[str]:
    """Freeze the model and wrap its linear layers of these names, full ones or last parts (as
    "q_proj"); returns the full names. Raises BadInput for a name that no linear layer has."""
    model.requires_grad_(False)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = []
    for target in targets:
        wanted = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not wanted:
            known = ", ".join(sorted({name.split(".")[-1] for name in linear}))
            raise BadInput(
                f"target_modules names {target!r}, which no layer has: there are {known}.",
                key="no-layer",
            )
        names += wanted
    for name in dict.fromkeys(names):
        model.set_submodule(name, LoraLinear(model.get_submodule(name), r, alpha, dropout))
    return names


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What is trained: A and B of each layer."""
    return [weight for m in lora_layers(model).values() for weight in (m.A_RI, m.B_OR)]


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Inside, the model answers as the base model: the reference costs no second copy."""
    layers = lora_layers(model).values()
    try:
        for layer in layers:
            layer.active = False
        yield
    finally:
        for layer in layers:
            layer.active = True


@torch.no_grad()
def live_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's weights with the adapter merged, under the base model's names, one by one."""
    layers = lora_layers(model)
    for name, weight in model.named_parameters():
        layer = layers.get(name.removesuffix(".base.weight"))
        if not name.endswith(("A_RI", "B_OR")):
            yield name.replace(".base.", "."), layer.merged() if layer else weight.detach()


def save_lora(model: nn.Module, folder: Path, base: str = "") -> None:
    """Write A and B (safetensors) and the settings as peft does; `base` is the base model."""
    from peft import LoraConfig

    layers = lora_layers(model)
    first = next(iter(layers.values()))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_named_weights(model), folder / "adapter_model.safetensors", {"format": "pt"})
    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=len(first.A_RI),
        lora_alpha=first.scale * len(first.A_RI),
        lora_dropout=first.dropout.p,
        target_modules=sorted({name.split(".")[-1] for name in layers}),
        inference_mode=True,
    ).save_pretrained(folder)


@torch.no_grad()
def load_lora(model: nn.Module, folder: Path) -> None:
    """Put a saved adapter (ours or peft's) on the model, which may have its wrappers already;
    raises BadInput where its weights are not those of this model's layers."""
    stored = load_file(folder / "adapter_model.safetensors")
    if not lora_layers(model):
        settings = read_json(folder / "adapter_config.json")
        names = ("r", "lora_alpha", "target_modules", "lora_dropout")
        add_lora(model, *(settings[name] for name in names))
    weights = _named_weights(model)
    if {k: w.shape for k, w in weights.items()} != {k: w.shape for k, w in stored.items()}:
        raise BadInput(
            f"The adapter in {folder} does not fit the model: give the base model and the r that "
            f"it was trained with.",
            key="other-adapter",
        )
    for name, weight in weights.items():
        weight.copy_(stored[name])


def _named_weights(model: nn.Module) -> dict[str, Tensor]:
    """A and B, not copied, under peft's names: as seen from its own wrapper."""
    return {
        f"base_model.model.{name}.lora_{letter}.weight": weight.data
        for name, layer in lora_layers(model).items()
        for letter, weight in (("A", layer.A_RI), ("B", layer.B_OR))
    }
