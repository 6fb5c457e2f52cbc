"""Lets the backends that need a GPU train on a CPU, so that everything around their kernels is run for real.

A process that finds this folder on ``PYTHONPATH``, and ``PRETEND_GPU`` set, sees one GPU, whose tensors lie on the CPU;
collectives are gloo's. accelerate is told that there is nothing to shard, since its FSDP knows no CPU: of SFT neither
sharding nor its form of a full state is tried here.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any


def _torch(torch: Any) -> None:
    import torch.distributed as dist
    from torch.distributed import device_mesh, distributed_c10d

    nothing: dict[str, Any] = dict.fromkeys(
        ("set_device", "empty_cache", "reset_peak_memory_stats", "manual_seed", "manual_seed_all"),
        lambda *_: None,
    )
    answers = {
        "is_available": True,
        "is_initialized": False,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": torch.device("cpu"),
        "memory_allocated": 2_000_000,
        "max_memory_allocated": 3_000_000,
        "memory_stats": {"num_alloc_retries": 0},
        "get_device_capability": (9, 0),
        "get_device_name": "a pretended GPU",
        "get_device_properties": types.SimpleNamespace(gcnArchName=""),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name, function in nothing.items():
        setattr(torch.cuda, name, function)
    torch.Tensor.cuda = lambda self, *_, **__: self
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):
            setattr(torch.optim.Optimizer, name, lambda self: None)
    begin, mesh = dist.init_process_group, device_mesh.init_device_mesh

    def init_process_group(backend: Any = None, *_: Any, device_id: Any = None, **options: Any) -> Any:
        return begin("gloo", **options)

    dist.init_process_group = distributed_c10d.init_process_group = init_process_group
    device_mesh.init_device_mesh = lambda device, *shape, **names: mesh("cpu", *shape, **names)


def _accelerate_state(state: Any) -> None:
    begin = state.PartialState.__init__

    def alone(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self.distributed_type = state.DistributedType.NO

    state.PartialState.__init__ = alone


class _Torch:
    """torch, whose GPUs are the CPU."""

    cuda: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules["torch"], name)

    def device(self, kind: Any, *index: int) -> Any:
        torch = sys.modules["torch"]
        return torch.device("cpu") if str(kind).startswith("cuda") else torch.device(kind, *index)


def _names_devices(module: Any) -> None:
    module.torch = _Torch()


def _copies_to_cpu(module: Any) -> None:
    module.torch = torch = _Torch()
    torch.cuda = types.SimpleNamespace(is_available=lambda: False)


_AFTER: dict[str, Callable[[Any], None]] = {
    "torch": _torch,
    "torch.distributed.checkpoint.filesystem": _copies_to_cpu,
    "accelerate.state": _accelerate_state,
    "mini_trainer.utils": _names_devices,
    "mini_trainer.osft_utils": _names_devices,
    "mini_trainer.setup_model_for_training": _names_devices,
    "instructlab.training.batch_loss_manager": _names_devices,
}


class _Loader(importlib.abc.Loader):
    """Changes a module when it has been loaded."""

    def __init__(self, loader: importlib.abc.Loader, after: Callable[[Any], None]) -> None:
        self._loader, self._after = loader, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._loader.exec_module(module)
        self._after(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name not in _AFTER:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _AFTER[name])
        return spec


if os.environ.get("PRETEND_GPU"):
    sys.meta_path.insert(0, _Finder())
