"""Image tokens dropped between the layers of a real model's language model, while a `with` lasts.

The model is untouched outside: hooks before its decoder layers shorten what a layer is given, and are gone when the
block is left, however it is left. What is left in a layer sees exactly what it would see with the dropped tokens
masked out of attention from that layer on. Works with the sdpa and eager kernels; how `generate` reads on with layers
that have cached different numbers of tokens is in docs/inside.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from regard.allocation import Allocation
from regard.errors import DataError, ModelError
from regard.record import Picture, Record
from regard.vlm.inside.last_row import attention_of, check_layer
from regard.vlm.inside.prefill import Prefill
from regard.vlm.inside.pruner import Pruner, spread
from regard.vlm.inside.records import records_of
from regard.vlm.opened import Opened, opened, window_of

KERNELS = ("sdpa", "eager")
METHODS = {"fastv": "FastV", "pyramiddrop": "PyramidDrop"}  # a file of this folder and its class


@contextmanager
def inside(model: nn.Module, method: str | Pruner, **fields: Any) -> Iterator["Inside"]:
    """Prune image tokens inside the language model of `model` while the block lasts.

    method: "fastv" (fields keep=0.5, layer=2, or budget), "pyramiddrop" (keep=0.5, layers_at=(0.25, 0.5, 0.75), or
    budget), or a `Pruner`. In the block call `model(**inputs)` or `model.generate(**inputs)` as always, with what the
    processor returned or with what `regard.shorten` did. A prompt without image tokens is left alone. The logits of
    `model(**inputs)` have fewer columns than the prompt, those of `run.kept`. Raises ModelError, BudgetError or
    DataError in one line for what cannot be done.
    """
    run = Inside(opened(model), _loaded(method, fields))
    handles = run.hooked()
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def _loaded(method: str | Pruner, fields: dict[str, Any]) -> Pruner:
    if isinstance(method, Pruner):
        if fields:
            raise ModelError(f"{type(method).__name__} is made already: give {', '.join(fields)} when making it")
        return method
    if method not in METHODS:
        raise ModelError(f"no way of pruning inside is named {method!r}: the names are {', '.join(METHODS)}")
    kind = getattr(import_module(f"{__package__}.{method}"), METHODS[method])
    try:
        return kind(**fields)
    except TypeError as error:
        raise ModelError(f"{method}: {error}") from error


class Inside:
    """What was dropped, of the prompts read last: what `inside` gives to its block. Lists have one entry a prompt (and
    beam); a prompt is an image where it has one.
    """

    def __init__(self, vlm: Opened, method: Pruner) -> None:
        self.method = method
        self._vlm = vlm
        self._layers = decoder_layers(vlm)
        self._stages = method.layers(self.depth)
        self._now: Prefill | None = None
        self._last: Prefill | None = None
        self._reading = False
        self._read: WeakKeyDictionary[Any, Prefill] = WeakKeyDictionary()
        for layer in {method.judge(stage) for stage in self._stages}:
            check_layer(self._layers[layer])
        lowest = lowest_layer(vlm, len(self._layers))
        if self._stages[0] < lowest:
            raise ModelError(
                f"{type(method).__name__}: {vlm.config.model_type} can be pruned from layer {lowest} on, "
                f"not from layer {self._stages[0]}"
            )
        if any(isinstance(getattr(hook, "__self__", None), Inside) for hook in vlm.base._forward_pre_hooks.values()):
            raise ModelError("this model is pruned inside already: leave that block first")

    def hooked(self) -> list[Any]:
        """Start; gives the handles of the hooks."""
        base, head = self._vlm.base, self._vlm.model
        handles = [base.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        if head is not base:
            handles.append(head.register_forward_pre_hook(_before_head, with_kwargs=True))
        first = min(self._stages[0], self.method.judge(self._stages[0]))
        for number in range(first, self.depth):
            hook = self._hook(number)
            handles.append(self._layers[number].register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return len(self._layers)

    @property
    def steps(self) -> list[list[tuple[int, Allocation]]]:
        """(from layer, Allocation) of each stage, each Allocation a batch of one from what was left before."""
        return [[(layer, kept) for layer, kept, _ in steps] for steps in self._prefill.steps]

    @property
    def scores(self) -> list[list[Tensor]]:
        """What each stage decided by: the attention to the image tokens left before it, (N,)."""
        return [[scores for _, _, scores in steps] for steps in self._prefill.steps]

    @property
    def kept(self) -> Tensor:
        """(B, L), True for the columns of the prompt that reach the last layer, in the order of the logits."""
        return self._prefill.alive

    @property
    def mask(self) -> Tensor:
        """(B, L'), True for the columns of the logits that are no padding."""
        return self._prefill.columns.mask

    @property
    def tokens_per_layer(self) -> list[tuple[int, ...]]:
        """Image tokens that each layer reads."""
        sizes = [[(layer, allocation.n_out) for layer, allocation in steps] for steps in self.steps]
        counts = self._prefill.image.sum(dim=1).tolist()
        return [spread(tokens, steps, self.depth) for tokens, steps in zip(counts, sizes, strict=True)]

    @property
    def average(self) -> list[float]:
        """Image tokens, averaged over the layers."""
        return [sum(tokens) / self.depth for tokens in self.tokens_per_layer]

    @property
    def peak(self) -> list[int]:
        """Image tokens of the layer that reads most."""
        return [max(tokens) for tokens in self.tokens_per_layer]

    def records(self, inputs: Mapping[str, Any], pictures: Sequence[Picture] | None = None) -> list[Record]:
        """One Record an image. inputs: what the model was given. pictures: what to show; by default a grey stand-in."""
        return records_of(self._vlm, self.method, self.steps, self.scores, inputs, pictures)

    @property
    def _prefill(self) -> Prefill:
        if self._last is None:
            raise DataError("no prompt with an image was read in this block yet: call the model first")
        return self._last

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find out what the model is about to read: a prompt, or what comes after one."""
        ids = args[0] if args else kwargs.get("input_ids")
        cache = kwargs.get("past_key_values")
        length = (kwargs["inputs_embeds"] if ids is None else ids).shape[1]
        past = 0 if cache is None else int(cache.get_seq_length())
        self._now, self._reading = None, past == 0
        window = window_of(self._vlm)
        if window is not None and window < past + length:
            raise ModelError(f"{past + length} tokens are more than the window of {window} that the model attends to")
        if self._vlm.model.training:
            raise ModelError("the model is in training mode: call model.eval() first")
        if self._vlm.text._attn_implementation not in KERNELS:
            kernel = self._vlm.text._attn_implementation
            raise ModelError(f"pruning inside needs the kernel sdpa or eager, not {kernel!r}: set_attn_implementation")
        if getattr(cache, "is_compileable", False):
            raise ModelError("pruning inside needs a cache that grows: leave cache_implementation as it is")
        if past:
            self._now = self._followed(cache, ids, length)
        else:
            self._now = Prefill.of(self._vlm, ids, kwargs.get("attention_mask"))
            self._last = self._now or self._last

    def _followed(self, cache: Any, ids: Tensor | None, length: int) -> Prefill | None:
        """The prompt that this cache holds, None where nothing was dropped of it."""
        if ids is not None and bool((ids == self._vlm.image_token).any()):
            raise ModelError("image tokens after what is cached already: a prompt must be read in one piece")
        before = self._read.get(cache)
        if before is None:
            if len({int(cache.get_seq_length(number)) for number in range(self.depth)}) > 1:
                raise ModelError("this cache was shortened in another block or copied: read its prompt in this block")
            return None
        if before.fresh and length > 1:
            raise ModelError("the tokens after a prompt must come one by one at first: no chunks, no assistant")
        before.fresh = False
        before.forget()
        return before

    def _hook(self, number: int) -> Any:
        def before_layer(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            if self._now is None:
                return None
            hidden, given = (args[0], kwargs) if args else (kwargs["hidden_states"], kwargs)
            hidden, given = (self._prune if self._reading else self._follow)(self._now, number, hidden, given)
            if number == self.depth - 1:
                self._now.forget()
            return ((hidden, *args[1:]), given) if args else ((), {**given, "hidden_states": hidden})

        return before_layer

    def _prune(self, prompt: Prefill, number: int, hidden: Tensor, given: dict) -> tuple[Tensor, dict]:
        """What a layer reads of the prompt."""
        cut = prompt.cut(given)
        if number in self._stages:
            if given.get("past_key_values") is not None:
                self._read[given["past_key_values"]] = prompt
            if self.method.judge(number) == number:
                prompt.judged(attention_of(self._layers[number], hidden, cut, prompt.asks()))
            stage = self._stages.index(number)
            hidden = prompt.dropped(number, lambda tokens: self.method.counts(tokens, self.depth)[stage], hidden)
            cut = prompt.cut(given)
        if any(self.method.judge(stage) == number != stage for stage in self._stages):
            prompt.judged(attention_of(self._layers[number], hidden, cut, prompt.asks()))
        return hidden, cut

    def _follow(self, prompt: Prefill, number: int, hidden: Tensor, given: dict) -> tuple[Tensor, dict]:
        """What a layer reads of what comes after the prompt."""
        if len(hidden) != len(prompt.image):
            raise ModelError(f"{len(hidden)} sequences go on from {len(prompt.image)} prompts: they must be as many")
        cached = int(given["past_key_values"].get_seq_length(number))
        return hidden, prompt.cut_later(number, given, hidden, cached)


def _before_head(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse what only the model with its head is told of."""
    if kwargs.get("labels") is not None:
        raise DataError("pruning inside leaves fewer logits than labels: leave labels out")
    cache, logits = kwargs.get("past_key_values"), kwargs.get("logits_to_keep", 0)
    if isinstance(logits, int) and logits > 1 and not (cache is not None and cache.get_seq_length()):
        raise ModelError(
            "the last token of the prompt decides, so it must end it: no assistant, no logits_to_keep over 1"
        )


def decoder_layers(vlm: Opened) -> list[nn.Module]:
    """The layers of the language model. Raises ModelError where they cannot be found."""
    decoder = vlm.base.get_decoder()  # pyright: ignore[reportCallIssue]
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"{type(decoder).__name__} has no list of layers to prune between")
    return list(layers)[: vlm.text.num_hidden_layers]


def lowest_layer(vlm: Opened, depth: int) -> int:
    """The first layer that may read a shorter prompt.

    Before it stand the layers that DeepStack adds image features after, and the first layer of each kind, whose cache
    tells the model how long the prompt is.
    """
    deep = len(getattr(vlm.config.vision_config, "deepstack_visual_indexes", None) or ())
    kinds = getattr(vlm.text, "layer_types", None) or ["full_attention"] * depth
    return max(deep, 1 + max(kinds.index(kind) for kind in set(kinds)))
