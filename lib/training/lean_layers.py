"""LoRA layers and norms without the copies: the same numbers, in fewer passes over memory.

peft keeps A and B in float32 and takes every layer's input and output there and back,
which on a CPU costs as much as the products themselves. Here only A and B, which are
small, are rounded to the base layer's precision on the way (as autocast does), and one
function computes forward and backward in place (Hu et al. 2021, arXiv:2106.09685, eq. 3):

    y = x Wᵀ + b + s · (x Aᵀ) Bᵀ

A norm is likewise one function instead of six (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).
On a CPU the two norms of a block take as long as its products otherwise.
"""

from types import MethodType
from typing import Any

import torch


class LoraLinear(torch.autograd.Function):
    """y_NO = x_NI W_OIᵀ + s (x_NI A_RIᵀ) B_ORᵀ with gradients for x, A and B; W is frozen."""

    @staticmethod
    def forward(ctx, x_NI, base, a_RI, b_OR, scaling):
        a, b = a_RI.to(x_NI.dtype), b_OR.to(x_NI.dtype)
        inner_NR = x_NI @ a.T
        y_NO = torch.nn.functional.linear(x_NI, base.weight, base.bias)
        y_NO.addmm_(inner_NR, b.T, alpha=scaling)
        ctx.save_for_backward(x_NI, inner_NR, base.weight, a, b)
        ctx.scaling = scaling
        return y_NO

    @staticmethod
    def backward(ctx, grad_NO):
        x_NI, inner_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        slope_NR = (grad_NO @ b_OR).mul_(ctx.scaling)
        grad_a = (slope_NR.T @ x_NI).float()
        grad_b = (grad_NO.T @ inner_NR).float().mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ weight_OI).addmm_(slope_NR, a_RI)
        return grad_x, None, grad_a, grad_b, None


class RmsNorm(torch.autograd.Function):
    """y_ND = w_D · x_ND / rms(x_N), in 32 bit but for the last product; w is frozen.

    Only x and a number a row are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, x_ND, weight_D, epsilon):
        y_ND = x_ND.float()
        norm_N1 = torch.linalg.vector_norm(y_ND, dim=-1, keepdim=True)
        inverse_N1 = (norm_N1.square_() / x_ND.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x_ND, weight_D, inverse_N1)
        y_ND = y_ND.mul_(inverse_N1) if y_ND is not x_ND else y_ND * inverse_N1
        return y_ND.to(x_ND.dtype).mul_(weight_D)

    @staticmethod
    def backward(ctx, grad_ND):
        x_ND, weight_D, inverse_N1 = ctx.saved_tensors
        y_ND = x_ND.float() * inverse_N1
        slope_ND = (grad_ND * weight_D).float()
        along_N1 = (slope_ND * y_ND).mean(-1, keepdim=True)
        grad_x = slope_ND.addcmul_(y_ND, along_N1, value=-1).mul_(inverse_N1)
        return grad_x.to(x_ND.dtype), None, None


def make_lean(model: Any) -> int:
    """Let every plain LoRA layer and norm of a model compute as above; how many layers there are.

    Plain: on an unquantised, frozen linear layer, without dropout or a variant (DoRA).
    Where its adapter is switched off or merged, a layer computes as peft does. Norms: those of
    Llama's form (Gemma's is another), frozen, and on a CPU, where it pays.
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    for module in model.modules():
        if _is_plain_norm(module):
            module.forward = MethodType(_norm, module)
    return len(layers)


def _is_plain_norm(module: Any) -> bool:
    llamas = type(module).__name__ in ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")
    return llamas and not (module.weight.requires_grad or module.weight.is_cuda)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return RmsNorm.apply(x, module.weight, module.variance_epsilon)


def _is_plain(module: Any) -> bool:
    if not hasattr(module, "lora_A") or not hasattr(module, "base_layer"):
        return False
    return (
        type(module.base_layer) is torch.nn.Linear
        and not module.base_layer.weight.requires_grad
        and not module.lora_variant
        and all(layer.bias is None for layer in module.lora_B.values())
        and all(isinstance(layer, torch.nn.Identity) for layer in module.lora_dropout.values())
    )


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    active = layer.active_adapters  # a reference policy is an adapter of its own
    if layer.disable_adapters or layer.merged or len(active) != 1 or args or kwargs:
        return type(layer).forward(layer, x, *args, **kwargs)
    [name], base = active, layer.base_layer
    x = x.to(base.weight.dtype)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    y = LoraLinear.apply(x.flatten(0, -2), base, a, b, layer.scaling[name])
    return y.unflatten(0, x.shape[:-1])
