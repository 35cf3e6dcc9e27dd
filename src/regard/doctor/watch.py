"""The attention kernel watched inside chosen modules while a block lasts, whatever kernel it is: nothing is replaced.

A hook before a module begins to listen to torch's own calls (`TorchFunctionMode`), one after it ends that, so that
nothing else of the model is slowed. A call goes on as it was. Only the thread that opened the block is listened to.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regard.doctor.kernel import Kernel, Reading, tokens_read
from regard.doctor.parts import AttentionLayer
from regard.errors import ModelError

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_telling = threading.local()  # what is made of a kernel's tensors is no kernel, for a block around this one
Told = Callable[[AttentionLayer, Reading], None]


@contextmanager
def watching(layers: Sequence[AttentionLayer], tell: Told, differentiable: bool = False) -> Iterator[None]:
    """Tell what each of these layers gave to its kernel, after each of its calls.

    differentiable: also where no parameter learns, what the kernels give can be differentiated by.
    """
    thread, handles = threading.get_ident(), []
    listeners = [_Listener(layer, tell, thread, differentiable) for layer in layers]
    try:
        for layer, listener in zip(layers, listeners, strict=True):
            handles.append(layer.module.register_forward_pre_hook(listener.begin, with_kwargs=True))
            handles.append(layer.module.register_forward_hook(listener.end, prepend=True, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for listener in listeners:
            listener.close()


def refuse_compiling() -> None:
    """Raise ModelError where a hook is run by the compiler and not by the model."""
    if torch.compiler.is_compiling():
        raise ModelError(
            "the model is being compiled, and then cannot be watched: run it uncompiled (disable_compile=True)"
        )


class _Listener:
    """Of one module."""

    def __init__(self, layer: AttentionLayer, tell: Told, thread: int, differentiable: bool) -> None:
        self.layer, self.tell, self.thread, self.differentiable = layer, tell, thread, differentiable
        self.open: list[_Calls] = []

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        refuse_compiling()
        if threading.get_ident() != self.thread:
            return
        calls = _Calls(tokens_read(args, kwargs), hasattr(module, "sinks"), self.differentiable)
        calls.__enter__()
        self.open.append(calls)

    def end(self, module: nn.Module, args: tuple, result: Any) -> None:
        if threading.get_ident() != self.thread or not self.open:
            return
        calls = self.open.pop()
        calls.__exit__(None, None, None)
        if calls.found and result is not None:
            _telling.now = True
            try:
                self.tell(self.layer, Reading(tuple(calls.found)))
            finally:
                _telling.now = False

    def close(self) -> None:
        """Stop, where a compiler took a module's beginning and left out its end."""
        while self.open:
            self.open.pop().__exit__(None, None, None)


class _Calls(TorchFunctionMode):
    """Listens for the kernel."""

    def __init__(self, tokens: int | None, sink: bool, differentiable: bool) -> None:
        super().__init__()
        self.tokens, self.sink, self.differentiable = tokens, sink, differentiable
        self.found: list[Kernel] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if getattr(_telling, "now", False):
            return out
        if func is F.scaled_dot_product_attention:
            self.found.append(Kernel.fused(args, kwargs, self._ready(out), self.tokens))
        elif func in _SOFTMAX and out.ndim == 4:
            self.found.append(Kernel.eager(self._ready(out), self.sink))
        return out

    def _ready(self, out: Tensor) -> Tensor:
        if self.differentiable and not out.requires_grad:
            out.requires_grad_()
        return out
