"""How large the tiles of a kernel are: the configs that fit a layer and a device, and the fastest of them."""

from collections.abc import Callable
from typing import Any

import torch
import triton

from .triton_kernels import INTERPRETED

STATS_CONFIGS = [triton.Config({"R": rows, "C": 64}, num_warps=rows // 16, num_stages=2) for rows in (64, 128)]
CONFIGS = [
    triton.Config({"R": rows, "C": columns, "G": group}, num_warps=warps, num_stages=2)
    for group in range(1, 11)
    for rows, columns, warps in ((64, 32, 8), (64, 32, 4), (64, 16, 4), (128, 32, 8), (32, 32, 2))
]
SMALLEST = triton.Config({"R": 16, "C": 16, "G": 1}, num_warps=2, num_stages=1)  # always fits


def split_channels(channels: int) -> tuple[int, int]:
    """(D0, D1) for D channels: powers of two of at least 16, the least a tensor core takes; D1 may be 0."""
    first = max(16, 1 << (channels.bit_length() - 1))
    rest = channels - first
    return first, max(16, triton.next_power_of_2(rest)) if rest > 0 else 0


def registers(config: triton.Config, channels: int, itemsize: int, kernel: str) -> int:
    """About how many registers a thread needs: from about 220 on the compiler spills some of them to memory."""
    rows, columns, group = (config.kwargs[name] for name in ("R", "C", "G"))
    operands = channels * itemsize // 2  # of one product
    if kernel == "shares":
        return rows * ((group + 2) * columns + 2 * operands) // (32 * config.num_warps) + 2 * group**2
    return rows * (group * (channels + columns) + 2 * columns + operands) // (32 * config.num_warps)


def shared_memory(config: triton.Config, channels: int, itemsize: int, kernel: str) -> int:
    """About how many bytes a program needs: operands of the group, and those on their way."""
    rows, columns, group = (config.kwargs[name] for name in ("R", "C", "G"))
    stages = config.num_stages
    tiles = {
        "mix": stages * (rows + columns) + group * columns,
        "shares": 2 * group * (rows + stages * columns),
        "score_grad": group * rows + stages * (rows + columns),
    }
    return tiles[kernel] * channels * itemsize + 8192


def fitting(kernel: str, heads: int, channels: int, itemsize: int, major: int, memory: int) -> list[triton.Config]:
    """The few configs worth timing for a layer: those with the largest groups that fit.

    Args:
        kernel: "mix", "shares" or "score_grad".
        heads: H.
        channels: D as padded, D0 + D1.
        itemsize: of the inputs, in bytes.
        major: of the device's compute capability.
        memory: shared memory that a program may have, in bytes.
    """
    splits_columns = major in (9, 10) or itemsize == 4  # warps can share the 16 rows of a product
    limit = 220 if itemsize == 2 else 130  # float32 products run outside of the tensor cores and need more
    fits = [
        config
        for config in CONFIGS
        if config.kwargs["G"] == triton.cdiv(heads, triton.cdiv(heads, config.kwargs["G"]))  # groups of like size
        and (splits_columns or config.kwargs["R"] >= 16 * config.num_warps)
        and registers(config, channels, itemsize, kernel) <= limit
        and shared_memory(config, channels, itemsize, kernel) <= memory
    ]
    return sorted(fits, key=lambda config: -config.kwargs["G"])[:5] or [SMALLEST]


def fitting_here(kernel: str) -> Callable[..., list[triton.Config]]:
    def prune(_configs: Any, arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
        data = next(iter(arguments.values())).data  # of the first operand
        major, _ = torch.cuda.get_device_capability(data.device)
        memory = triton.runtime.driver.active.utils.get_device_properties(data.device.index)["max_shared_mem"]
        return fitting(kernel, constants["H"], constants["D0"] + constants["D1"], data.element_size(), major, memory)

    return prune


def tuned(kernel: Any, configs: list[triton.Config], prune: Any = None) -> Any:
    """`kernel`, which times its configs on the first layer of a kind and remembers the best, also on disk."""
    key = [name for name in ("H", "D", "MASK", "KEY_ROWS", "kind") if name in kernel.arg_names]
    if INTERPRETED:
        sizes = {"R": 32, "C": 64, "G": 3}
        configs = [triton.Config({name: size for name, size in sizes.items() if name in kernel.arg_names})]
    prune_by = {"early_config_prune": prune} if prune else None
    return triton.autotune(configs, key, prune_configs_by=prune_by, cache_results=True)(kernel)
