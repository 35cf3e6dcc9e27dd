"""Visual experts (CogVLM, Wang et al., arXiv 2311.03079): image tokens have weights of their own, and one attention.

    q_i, k_i, v_i = x_i W_e(i),    e(i) = vision for image tokens, language for the others
    Attention(x)_i = softmax_j<=i( rot(q_i) rot(k_j)' / sqrt(d) ) v_j W_o,e(i)
    Block(x) = y + MLP_e(LN(y)),    y = x + Attention(LN(x)),    MLP(x) = (silu(x W_g) * x W_u) W_d,    LN = RMSNorm

The last token of a run of image tokens goes to the language expert (`routed`), and the tokens inside a run share one
rotary position (`image_positions`), as in the released code. Ours differs in form: each token goes through its own
expert only, found by index (`Routes`); gate and up are one projection; and rows that see nothing give zeros.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention._base import Layer, attend, attention_weights, check_input, checked_mask, heads_of, joined
from regard.attention.scaled import copy_into, rotated
from regard.errors import ModelError, ShapeError


class Routes(NamedTuple):
    """Which tokens, counted over the whole batch, go to which expert, (V,) and (L,) with V + L = B * N, and the rotary
    positions of all, (B, N): found once, they serve every layer.

    Made outside what is compiled, `torch.compile` sees the whole layer (fullgraph=True): no size depends on a value.
    """

    vision: Int[Tensor, " v"]
    language: Int[Tensor, " l"]
    positions: Int[Tensor, "b n"]

    @classmethod
    def of(cls, image: Bool[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> "Routes":
        """image: (B, N), True = a token of an image. The rules are `routed` and, of the mask too, `image_positions`."""
        visual = routed(image).flatten()
        return cls(visual.nonzero()[:, 0], (~visual).nonzero()[:, 0], image_positions(image, mask))


def routed(image: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """Which tokens go to the visual expert: image tokens whose next token is of an image too.

    So the last of a run does not, nor does a run of one. Raises ShapeError unless image is bool (B, N).
    """
    _check_image(image)
    return image & F.pad(image[:, 1:], (0, 1), value=False)


def image_positions(image: Bool[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Int[Tensor, "b n"]:
    """Rotary positions (B, N), from 0: each token has the next one, but those inside a run of image tokens share one.

    The first and the last of a run have positions of their own: text, 5 of image, text have 0, 1, 2, 2, 2, 3, 4. mask:
    (B, N), False = padding, which takes no position. Raises ShapeError unless image and mask are bool of one shape.
    """
    _check_image(image)
    if mask is None:
        mask = torch.ones_like(image)
    if mask.shape != image.shape or mask.dtype != torch.bool:
        raise ShapeError(f"mask must be bool of shape {tuple(image.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    image = image & mask
    before, after = F.pad(image[:, :-1], (1, 0), value=False), F.pad(image[:, 1:], (0, 1), value=False)
    inside = image & before & after
    follows = inside & F.pad(inside[:, :-1], (1, 0), value=False)
    return ((mask & ~follows).cumsum(dim=1) - 1).clamp(min=0)


class VisualExpertAttention(Layer):
    """`layer(x, image)`: causal self-attention, (B, N, D) in and out, with two sets of projections, none with a bias.

    base: of the rotary frequencies. Raises ShapeError where the heads do not divide dim into heads of even width.
    """

    def __init__(self, dim: int, heads: int, base: float = 10_000.0) -> None:
        super().__init__()
        if heads_of(dim, heads) % 2:
            raise ShapeError(f"rotary positions need heads of even width, got dim={dim} and heads={heads}")
        self.dim, self.heads, self.base = dim, heads, base
        self.vision_qkv, self.language_qkv = (nn.Linear(dim, 3 * dim, bias=False) for _ in range(2))
        self.vision_out, self.language_out = (nn.Linear(dim, dim, bias=False) for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        image: Bool[Tensor, "b n"] | Routes,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """x: (B, N, D). image: (B, N), True = a token of an image, or its `Routes`. mask: (B, N) or (B, N, N), True =
        may be seen, besides what comes later, which never is; one of (B, N) is padding to the positions too.
        """
        routes = checked_routes(x, self.dim, image, mask)
        q, k, v = self._projected(x, routes)
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = attend(q, k, v, causal(x, mask))
        return by_expert(joined(y), routes, self.vision_out, self.language_out)

    def weights(
        self,
        x: Float[Tensor, "b n d"],
        image: Bool[Tensor, "b n"] | Routes,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b h n n"]:
        """(B, H, N, N), one softmax over image and text: rows that sum to 1, or to 0 where nothing is seen."""
        q, k, _ = self._projected(x, checked_routes(x, self.dim, image, mask))
        return attention_weights(q, k, causal(x, mask))

    def _projected(self, x: Tensor, routes: Routes) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, N, d), the first two turned by their positions."""
        joint = by_expert(x, routes, self.vision_qkv, self.language_qkv)
        q, k, v = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        count, exact = q.shape[-1] // 2, torch.promote_types(x.dtype, torch.float32)
        speed = self.base ** (-torch.arange(count, device=x.device, dtype=exact) / count)
        angle = (routes.positions[:, None, :, None] * speed).repeat(1, 1, 1, 2)
        rotary = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        return rotated(q, rotary), rotated(k, rotary), v

    @classmethod
    def from_transformers(cls, module: Any) -> "VisualExpertAttention":
        """From the attention of CogVLM's released code, or of Llama, of which both experts are then copies: so CogVLM
        begins. Raises ModelError for another, for grouped keys, biases, or scaled rotary positions.
        """
        sides = ("vision", "language")
        if hasattr(module, "vision_expert_query_key_value"):
            joint = [getattr(module, f"{side}_expert_query_key_value") for side in sides]
            out = [getattr(module, f"{side}_expert_dense") for side in sides]
            weights = [part.weight for part in joint]
            base = float(getattr(getattr(module, "rotary_emb", None), "base", 10_000.0))
        elif hasattr(module, "q_proj"):
            joint, out = [module.q_proj, module.k_proj, module.v_proj], [module.o_proj] * 2
            weights = [torch.cat([part.weight for part in joint])] * 2
            rope = module.config.rope_parameters
            if rope["rope_type"] != "default":
                raise ModelError(f"rotary positions of type {rope['rope_type']!r} are not those of CogVLM")
            base = float(rope["rope_theta"])
        else:
            raise ModelError(f"{type(module).__name__} is no attention of CogVLM or Llama")
        dim = out[0].weight.shape[0]
        if any(weight.shape != (3 * dim, dim) for weight in weights) or any(p.bias is not None for p in (*joint, *out)):
            raise ModelError(f"{type(module).__name__} has grouped keys or biases, which CogVLM does not have")
        layer = cls(dim, module.config.num_attention_heads, base).to(weights[0])
        for mine, weight in zip((layer.vision_qkv, layer.language_qkv), weights, strict=True):
            copy_into(mine, weight, None)
        for mine, theirs in zip((layer.vision_out, layer.language_out), out, strict=True):
            copy_into(mine, theirs.weight, None)
        return layer


class VisualExpertBlock(Layer):
    """A pre-norm block of a language model with visual experts in attention and MLP. hidden: width of the MLPs.

    eps: of the norms, which the experts share. Raises ShapeError as `VisualExpertAttention`.
    """

    def __init__(self, dim: int, heads: int, hidden: int, base: float = 10_000.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.attention = VisualExpertAttention(dim, heads, base)
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=eps), nn.RMSNorm(dim, eps=eps)
        self.vision_mlp, self.language_mlp = (_GatedMLP(dim, hidden) for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        image: Bool[Tensor, "b n"] | Routes,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """x, image, mask: as for `VisualExpertAttention`. A token that sees nothing passes through its MLP alone."""
        routes = checked_routes(x, self.attention.dim, image, mask)
        x = x + self.attention(self.norm1(x), routes, mask)
        return x + by_expert(self.norm2(x), routes, self.vision_mlp, self.language_mlp)

    def weights(
        self,
        x: Float[Tensor, "b n d"],
        image: Bool[Tensor, "b n"] | Routes,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b h n n"]:
        """Of the attention, (B, H, N, N)."""
        check_input("x", x, self.attention.dim)
        return self.attention.weights(self.norm1(x), image, mask)

    @classmethod
    def from_transformers(cls, module: Any) -> "VisualExpertBlock":
        """From a layer of CogVLM's released code, or of Llama, of which both experts are then copies.

        Raises ModelError as `VisualExpertAttention`.
        """
        if not hasattr(module, "self_attn") or not hasattr(module, "mlp"):
            raise ModelError(f"{type(module).__name__} is no layer of CogVLM or Llama")
        attention = VisualExpertAttention.from_transformers(module.self_attn)
        first, second = module.input_layernorm, module.post_attention_layernorm
        mlps = [getattr(module.mlp, f"{side}_mlp", module.mlp) for side in ("vision", "language")]
        hidden = mlps[0].gate_proj.weight.shape[0]
        layer = cls(attention.dim, attention.heads, hidden, attention.base, first.variance_epsilon).to(first.weight)
        layer.attention = attention
        copy_into(layer.norm1, first.weight, None)
        copy_into(layer.norm2, second.weight, None)
        for mine, theirs in zip((layer.vision_mlp, layer.language_mlp), mlps, strict=True):
            copy_into(mine.widen, torch.cat((theirs.gate_proj.weight, theirs.up_proj.weight)), None)
            copy_into(mine.narrow, theirs.down_proj.weight, None)
        return layer


class _GatedMLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.widen(x).chunk(2, dim=-1)
        return self.narrow(F.silu(gate) * up)


def by_expert(x: Float[Tensor, "b n c"], routes: Routes, vision: nn.Module, language: nn.Module) -> Tensor:
    """Each token through its own expert and no other, back in its place."""
    if not routes.vision.shape[0]:
        return language(x)
    if not routes.language.shape[0]:
        return vision(x)
    flat = x.flatten(0, 1)
    one, other = vision(flat.index_select(0, routes.vision)), language(flat.index_select(0, routes.language))
    out = one.new_empty(flat.shape[0], one.shape[1])
    return out.index_copy_(0, routes.vision, one).index_copy_(0, routes.language, other).unflatten(0, x.shape[:2])


def causal(x: Float[Tensor, "b n c"], mask: Tensor | None) -> Bool[Tensor, "#b 1 n n"]:
    """What each token may see: itself and what came before, where the mask lets it."""
    count = x.shape[1]
    before = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()[None, None]
    seen = checked_mask(mask, len(x), count, count)
    return before if seen is None else before & seen


def checked_routes(x: Tensor, dim: int, image: Tensor | Routes, mask: Tensor | None) -> Routes:
    """The routes of an input and a mask that fit. Raises ShapeError for other shapes."""
    check_input("x", x, dim)
    batch, count = x.shape[:2]
    checked_mask(mask, batch, count, count)
    if isinstance(image, Routes):
        shape, total = tuple(image.positions.shape), image.vision.shape[0] + image.language.shape[0]
        if shape != (batch, count) or total != batch * count:
            raise ShapeError(f"image must be routes of {batch} x {count} tokens, got {total} and positions of {shape}")
        return image
    _check_image(image, (batch, count))
    return Routes.of(image, mask if mask is not None and mask.ndim == 2 else None)


def _check_image(image: Tensor, shape: tuple[int, int] | None = None) -> None:
    wanted = "(B, N)" if shape is None else str(shape)
    if not isinstance(image, Tensor) or image.dtype != torch.bool or image.ndim != 2:
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ShapeError(f"image must be bool (True = a token of an image) of shape {wanted}, got {got}")
    if shape is not None and tuple(image.shape) != shape:
        raise ShapeError(f"image must be of shape {wanted}, as x, got {tuple(image.shape)}")
