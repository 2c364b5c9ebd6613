"""A second structure over the same weights: change how a model computes without changing the model."""

import copy
import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def shared_copy(module: Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Module:
    """A copy of a module that reads the same weights, frozen.

    Layers, hooks and processors are its own, so attaching coefficients to the copy leaves the original as it is. Costs
    no memory; weights are only copied where device or dtype ask for others.

    Raises:
        ValueError: the module is offloaded (`enable_model_cpu_offload`), so its weights are not simply there.
    """
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise ValueError(
            f"{type(module).__name__} is managed by accelerate hooks (CPU offload); load the pipeline without offload"
        )
    memo: dict[int, Any] = {}
    for weight in module.parameters():  # those of a quantized layer are whole numbers and stay so
        wanted = dtype if weight.is_floating_point() else None
        memo[id(weight)] = nn.Parameter(weight.detach().to(device=device, dtype=wanted), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else None)
    config = getattr(module, "_internal_dict", None)  # diffusers' frozen config cannot be copied and never changes
    if config is not None:
        memo[id(config)] = config
    return copy.deepcopy(module, memo)


def shared_pipeline(pipe: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """A pipeline over the same weights whose networks, tokenizers and scheduler can be changed on their own.

    It draws what the original draws while the original trains, loads subjects or draws in another thread.
    """
    parts: dict[str, Any] = {}
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            parts[name] = shared_copy(part, device, dtype)
        else:  # settings, tokenizers, schedulers
            parts[name] = copy.deepcopy(part) if hasattr(part, "save_pretrained") else part
    accepted = inspect.signature(type(pipe).__init__).parameters
    settings = {name: pipe.config[name] for name in accepted if name in pipe.config and name not in parts}
    if "requires_safety_checker" in settings:
        settings["requires_safety_checker"] = False  # what it is about is not loaded, and would be asked for
    shared = type(pipe)(**parts, **settings)
    shared.register_to_config(_name_or_path=pipe.name_or_path)
    return shared


def move_together(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Move modules to a device, in place: what several of them read stays one weight, and parameters stay themselves.

    (`Module.to` would give each module a copy of its own.)
    """
    moved: dict[tuple[Any, ...], torch.Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            found = tensor.data
            place = (found.device, found.data_ptr(), found.shape, found.stride(), found.dtype)
            if place not in moved:
                moved[place] = found.to(device)
            tensor.data = moved[place]
