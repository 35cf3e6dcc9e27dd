"""What DynamicViT, A-ViT and EViT compute: by an independent dense rule, and with tokens that are really gone."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.attention.vision import VisionTransformer
from regard.errors import ModelError, ShapeError
from regard.mechanisms import dynamicvit as dvit
from regard.mechanisms import evit
from regard.mechanisms.avit import AViT, prior
from regard.mechanisms.avit import loss as avit_loss
from regard.mechanisms.dynamic import KINDS, wrap
from regard.mechanisms.dynamicvit import DynamicViT
from regard.mechanisms.evit import EViT
from regard.mechanisms.vit import StaticViT, checked_layers, highest

CLASSES = 5


def tiny(kind: Any, seed: int = 0, registers: int = 0, **arguments: Any) -> Any:
    """In float64, with weights large enough for tokens to matter to one another."""
    torch.manual_seed(seed)
    vision = VisionTransformer(24, 4, 16, 6, 2, 24, channels=1, registers=registers)
    looker = wrap(vision, kind, classes=CLASSES, **arguments).double().eval()
    with torch.no_grad():
        for value in looker.parameters():
            if value.ndim > 1:
                value.normal_(0, 0.3)
    return looker


def images(count: int = 7, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(looker: Any, pixels: Tensor) -> Tensor:
    """What goes into the first block, by the rule of the paper and nothing of ours but the weights."""
    vision = looker.vision
    patches = F.unfold((pixels - 0.5) / 0.5, 4, stride=4).transpose(1, 2) @ vision.patches.weight.flatten(1).T
    patches = patches + vision.patches.bias
    return torch.cat((vision.class_token.expand(len(pixels), 1, -1), patches), dim=1) + vision.positions


def scores(block, x: Tensor) -> tuple[Tensor, Tensor]:
    """Products of queries and keys, (B, H, N, N), and values."""
    attention = block.attention
    y = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, block.norm1.eps)
    q, k, v = (y @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=2)
    q, k, v = (one.unflatten(2, (attention.heads, -1)).transpose(1, 2) for one in (q, k, v))
    return q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), v


def ended(block, x: Tensor, weights: Tensor, v: Tensor) -> Tensor:
    """The rest of the block's first half, given attention weights."""
    y = (weights @ v).transpose(1, 2).flatten(2)
    return x + y @ block.attention.out.weight.T + block.attention.out.bias


def fed(block, x: Tensor) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, block.norm2.eps)
    y = F.gelu(y @ block.widen.weight.T + block.widen.bias)
    return x + y @ block.narrow.weight.T + block.narrow.bias


def hidden(seen: Tensor, raw: Tensor) -> Tensor:
    """Softmax over what may be seen. seen: (B, N)."""
    return raw.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)


def headed(looker: Any, x: Tensor) -> Tensor:
    norm = looker.vision.final_norm
    return (
        F.layer_norm(x[:, 0], x.shape[-1:], norm.weight, norm.bias, norm.eps) @ looker.head.weight.T + looker.head.bias
    )


def test_the_highest_are_in_raster_order_and_ties_go_to_the_lower():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert highest(scores, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


# --- DynamicViT


def decided(looked) -> Tensor:
    """(B, S, N): what goes on after each stage."""
    return torch.stack([looked.stages > stage for stage in range(int(looked.exits[0]))], dim=1)


def policed(looker: DynamicViT, pixels: Tensor, decisions: Tensor, eps: float) -> Tensor:
    """The paper's training path, every row and every weight written out."""
    x, stage = parts(looker, pixels), 0
    policy = torch.ones(x.shape[:2], dtype=x.dtype)
    for depth, block in enumerate(looker.vision.blocks):
        if depth in looker.layers:
            policy = torch.cat((policy[:, :1], policy[:, 1:] * decisions[:, stage]), dim=1)
            stage += 1
        raw, v = scores(block, x)
        if not stage:
            weights = raw.softmax(dim=-1)
        else:
            n = x.shape[1]
            seen = torch.where(torch.eye(n, dtype=torch.bool), 1.0, policy[:, None, None].expand(-1, 1, n, n))
            grown = (raw - raw.max(dim=-1, keepdim=True).values).exp() * seen
            weights = (grown + eps / n) / (grown.sum(dim=-1, keepdim=True) + eps)
        x = fed(block, ended(block, x, weights, v))
    return headed(looker, x)


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 2])
def test_dynamicvit_hidden_patches_are_patches_that_are_gone(registers):
    looker = tiny("dynamicvit", registers=registers, eps=0.0)
    looked = looker.look(images())
    seen = looker(images(), decisions=decided(looked))
    torch.testing.assert_close(seen.logits, looked.logits, rtol=0, atol=1e-9)
    counts = [int((looked.stages[0] > stage).sum()) for stage in range(3)]
    assert counts == [int(36 * 0.7**s) for s in (1, 2, 3)]


@torch.no_grad()
@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-2])
def test_dynamicvit_learns_by_the_papers_softmax(eps):
    looker = tiny("dynamicvit", eps=eps)
    decisions = torch.rand(7, 3, 36, generator=torch.Generator().manual_seed(2)) < 0.6
    decisions = decisions.long().cumprod(dim=1).bool()
    expected = policed(looker, images(), decisions, eps)
    torch.testing.assert_close(looker(images(), decisions=decisions).logits, expected, rtol=0, atol=1e-11)
    other = policed(looker, images(), decisions, 0.0 if eps else 1e-6)
    assert float((expected - other).abs().max()) > 1e-8


@torch.no_grad()
def test_dynamicvit_predicts_by_local_and_kept_global_halves():
    torch.manual_seed(0)
    predictor = dvit.Predictor(8).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    policy = (torch.rand(2, 6) > 0.4).double()
    y = F.gelu(F.layer_norm(x, (8,)) @ predictor.split.weight.T + predictor.split.bias)
    mean = torch.stack([y[b, policy[b] > 0, 4:].mean(dim=0) for b in range(2)])
    y = torch.cat((y[..., :4], mean[:, None].expand(-1, 6, -1)), dim=2)
    one, two, three = (predictor.decide[i] for i in (0, 2, 4))
    expected = three(F.gelu(two(F.gelu(one(y))))).log_softmax(dim=2)
    torch.testing.assert_close(predictor(x, policy), expected)
    gone = predictor(x[:1, policy[0] > 0])
    torch.testing.assert_close(predictor(x, policy)[:1, policy[0] > 0], gone)


def test_dynamicvit_learns_where_nothing_goes_on():
    looker = tiny("dynamicvit")
    seen = looker(images(), decisions=torch.zeros(7, 3, 36, dtype=torch.bool))
    plain = wrap(looker, "vit")
    logits, tokens = plain(images())
    found = dvit.loss(seen, torch.zeros(7).long(), (logits, tokens[:, 1:]), looker.shares)
    found.backward()
    assert bool(found.isfinite())
    log_p = looker.predictors[0](torch.rand(2, 36, 16, dtype=torch.float64), torch.zeros(2, 36, dtype=torch.float64))
    assert bool(log_p.isfinite().all())


@torch.no_grad()
def test_the_order_of_patches_changes_no_logit(monkeypatch):
    """The authors' code gathers by score."""
    for kind, module in (("dynamicvit", dvit), ("evit", evit)):
        looker = tiny(kind)
        before = looker.look(images())
        by_score = lambda score, k: score.sort(dim=1, descending=True).indices[:, :k]  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(module, "highest", by_score)
            after = looker.look(images())
        torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)
        assert torch.equal(after.stages, before.stages)
        torch.testing.assert_close(after.features, before.features)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamicvit", "evit"])
def test_one_patch_fewer_is_another_answer(kind):
    looker = tiny(kind)
    fewer = tiny(kind, keep=0.7 - 1 / 36)
    fewer.load_state_dict(looker.state_dict())
    assert float((looker.look(images()).logits - fewer.look(images()).logits).abs().max()) > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamicvit", "evit"])
def test_all_that_is_kept_is_the_plain_transformer(kind):
    only: Any = {"eps": 0.0} if kind == "dynamicvit" else {}
    looker = tiny(kind, keep=1.0, **only)
    plain = wrap(looker, "vit").eval()
    looked = looker.look(images())
    torch.testing.assert_close(looked.logits, plain.look(images()).logits, rtol=0, atol=1e-12)
    assert bool((looked.stages == 3).all())


def test_what_is_drawn_comes_from_the_generator():
    looker = tiny("dynamicvit")
    one, same, other = (looker(images(), torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one.policies, same.policies)
    assert not torch.equal(one.policies, other.policies)
    policies = one.policies.detach()
    assert set(policies.round(decimals=6).unique().tolist()) == {0.0, 1.0}
    assert bool((policies[:, 1:] <= policies[:, :-1] + 1e-9).all())


def test_dynamicvit_draws_each_patch_as_often_as_it_is_likely():
    log_p = torch.tensor([0.2, 0.8]).log().expand(20_000, 1, 2)
    drawn = dvit._drawn(log_p, torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean()) - 0.2) < 0.01


def test_dynamicvit_loss_is_the_papers():
    looker = tiny("dynamicvit")
    seen = looker(images(), torch.Generator().manual_seed(3))
    labels = torch.arange(7) % CLASSES
    plain = wrap(looker, "vit")
    logits, tokens = plain(images())
    taught = (logits.detach() + 0.1, tokens[:, 1:].detach() * 1.1)
    rate = sum((seen.policies[:, s].mean(dim=1) - 0.7 ** (s + 1)).square().mean() for s in range(3))
    p, q = seen.logits.softmax(dim=1), taught[0].softmax(dim=1)
    divergence = (q * (q.log() - p.log())).sum(dim=1).mean()
    kept = seen.policies[:, 2] > 0.5
    apart = torch.cat([(seen.tokens[b, kept[b]] - taught[1][b, kept[b]]).square() for b in range(7)]).mean()
    expected = F.cross_entropy(seen.logits, labels) + 2.0 / 3 * rate + 0.5 * divergence + 0.5 * apart
    found = dvit.loss(seen, labels, taught, looker.shares)
    torch.testing.assert_close(found, expected)
    found.backward()
    for predictor in looker.predictors:
        assert float(predictor.split.weight.grad.abs().sum()) > 0


# --- EViT


def fused(looker: EViT, pixels: Tensor, fuse: bool = True, keep: float = 0.7) -> Tensor:
    """One image at a time, token by token."""
    logits = []
    for pixel in pixels.split(1):
        x = parts(looker, pixel)
        for depth, block in enumerate(looker.vision.blocks):
            raw, v = scores(block, x)
            weights = raw.softmax(dim=-1)
            x = ended(block, x, weights, v)
            if depth in looker.layers:
                attention = weights[0, :, 0, 1:].mean(dim=0)
                order = attention.argsort(descending=True).tolist()
                count = math.ceil(keep * len(order))
                rest = torch.stack([attention[i] * x[0, 1 + i] for i in order[count:]]).sum(dim=0)
                rows = [x[0, 0], *(x[0, 1 + i] for i in order[:count])]
                x = torch.stack([*rows, rest] if fuse else rows)[None]
            x = fed(block, x)
        logits.append(headed(looker, x))
    return torch.cat(logits)


@torch.no_grad()
@pytest.mark.parametrize("fuse", [True, False])
def test_evit_is_its_rule(fuse):
    looker = tiny("evit", fuse=fuse)
    looked = looker.look(images())
    torch.testing.assert_close(looked.logits, fused(looker, images(), fuse), rtol=0, atol=1e-11)
    assert float((looked.logits - fused(looker, images(), not fuse)).abs().max()) > 1e-6
    torch.testing.assert_close(looker(images()), looked.logits)
    counts = [int((looked.stages[0] > stage).sum()) for stage in range(3)]
    n, most = 36, []
    for _ in range(3):
        n = math.ceil(0.7 * n)
        most.append(n)
        n += fuse
    # an earlier fused token may be among what is kept
    assert all(0 <= m - c <= (stage > 0 and fuse) for stage, (m, c) in enumerate(zip(most, counts, strict=True)))


def test_evit_learns_through_what_is_fused():
    looker = tiny("evit")
    looker(images()).square().sum().backward()
    assert bool((looker.vision.positions.grad.abs().sum(dim=1) > 0).all())


# --- A-ViT


def halted(looker: AViT, pixels: Tensor, remainder: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, depths, ponder and mean halting, one token at a time in plain numbers."""
    x = parts(looker, pixels)
    batch, n, _ = x.shape
    alive = torch.ones(batch, n, dtype=torch.bool)
    total, left = torch.zeros(batch, n, dtype=x.dtype), torch.ones(batch, n, dtype=x.dtype)
    output, ponder, depths, means = torch.zeros_like(x), torch.zeros_like(total), torch.zeros(batch, n).long(), []
    last = len(looker.vision.blocks) - 1
    for depth, block in enumerate(looker.vision.blocks):
        raw, v = scores(block, x)
        seen = alive | ~alive.any(dim=1, keepdim=True)
        x = fed(block, ended(block, x, hidden(seen, raw), v))
        score = 1 / (1 + (looker.centre - looker.gate * x[..., 0]).exp())
        means.append(float((score * alive).sum()) / score.numel())
        for b in range(batch):
            for i in range(n):
                if not alive[b, i]:
                    continue
                h = 1.0 if depth == last else float(score[b, i])
                total[b, i] += h
                ponder[b, i] += 1
                depths[b, i] = depth
                if total[b, i] >= 1 - looker.eps:
                    output[b, i] += (left[b, i] if remainder else h) * x[b, i]
                    ponder[b, i] += left[b, i]
                    alive[b, i] = False
                else:
                    output[b, i] += h * x[b, i]
                    left[b, i] -= h
    return headed(looker, output), depths, ponder, torch.tensor(means, dtype=x.dtype)


HALTING: dict[str, Any] = {"gate": 2.0, "centre": 3.0}


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_avit_is_its_rule(seed):
    looker = tiny("avit", seed, **HALTING)
    logits, depths, ponder, means = halted(looker, images())
    seen = looker(images())
    assert len(depths.unique()) > 3  # tokens halt all over
    torch.testing.assert_close(seen.logits, logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(seen.ponder, ponder)
    torch.testing.assert_close(seen.halting, means)
    assert torch.equal(seen.depths, depths)
    bare, *_ = halted(looker, images(), remainder=False)
    assert float((bare - logits).abs().max()) > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_avit_halted_tokens_are_tokens_that_are_gone(seed, registers):
    looker = tiny("avit", seed, registers, **HALTING)
    seen, looked = looker(images()), looker.look(images())
    torch.testing.assert_close(looked.logits, seen.logits, rtol=0, atol=1e-9)
    assert torch.equal(looked.exits, seen.depths[:, 0])
    patches = seen.depths[:, looker.first :]
    assert torch.equal(looked.stages, patches.minimum(looked.exits[:, None]))
    assert torch.equal(looked.tokens, (looked.stages + 1).sum(dim=1))
    assert len(patches.float().mean(dim=1).unique()) > 1  # ragged


@torch.no_grad()
def test_avit_that_never_halts_is_the_plain_transformer():
    looker = tiny("avit", gate=0.0, centre=60.0)
    looked, plain = looker.look(images()), wrap(looker, "vit").eval().look(images())
    torch.testing.assert_close(looked.logits, plain.logits, rtol=0, atol=1e-9)
    assert torch.equal(looked.macs, plain.macs)


def test_avit_loss_is_ponder_and_prior():
    looker = tiny("avit", **HALTING)
    seen, labels = looker(images()), torch.arange(7) % CLASSES
    target = prior(6, 3.0)
    wanted = torch.tensor([math.exp(-0.5 * (k - 3) ** 2) for k in range(6)])
    torch.testing.assert_close(target, wanted / wanted.sum())
    shares = (seen.halting / seen.halting.sum()).clamp(0.01, 0.99)
    apart = (target * (target.log() - shares.log())).sum() / 6
    expected = F.cross_entropy(seen.logits, labels) + 0.1 * seen.ponder.mean() + 0.2 * apart
    found = avit_loss(seen, labels, target, 0.1, 0.2)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert float(looker.vision.patches.weight.grad.abs().sum()) > 0


# --- around what there is


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_wrapped_may_be_of_transformers(kind: Any):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"image_size": 24, "patch_size": 4, "num_channels": 3, "hidden_size": 16, "num_hidden_layers": 4}
    config = transformers.ViTConfig(**sizes, num_attention_heads=2, intermediate_size=24, num_labels=7)
    model = transformers.ViTForImageClassification(config).eval()
    keeps_all: Any = {"avit": {"gate": 0.0, "centre": 60.0}, "vit": {}}.get(kind, {"keep": 1.0})
    looker = wrap(model, kind, **keeps_all)
    pixels = torch.rand(3, 3, 24, 24)
    expected = model((pixels - 0.5) / 0.5).logits
    torch.testing.assert_close(looker.look(pixels).logits, expected, rtol=1e-4, atol=1e-5)
    headless = wrap(model.vit, kind, classes=3, **keeps_all)
    assert headless.look(pixels).logits.shape == (3, 3)


def test_what_cannot_be_wrapped_is_named():
    with pytest.raises(ModelError, match="Linear"):
        wrap(torch.nn.Linear(2, 2), "evit")
    vision = VisionTransformer(24, 4, 16, 6, 2, 24, channels=1)
    with pytest.raises(ModelError, match="no such kind 'other'"):
        wrap(vision, "other")  # pyright: ignore
    with pytest.raises(ModelError, match="learned positions"):
        wrap(VisionTransformer(24, 4, 16, 2, 2, 24, positions="rotary"), "vit")
    with pytest.raises(ModelError, match="a class token"):
        wrap(VisionTransformer(24, 4, 16, 2, 2, 24, class_token=False), "vit")
    with pytest.raises(ModelError, match="classes=3"):
        wrap(StaticViT(vision, 5), "evit", classes=3)
    for wrong in ([0, 2], [2, 1], [1, 1], [6]):
        with pytest.raises(ShapeError, match="layers must rise"):
            wrap(vision, "evit", layers=wrong)
    with pytest.raises(ShapeError, match="keep must be a share"):
        wrap(vision, "evit", keep=0.0)
    with pytest.raises(ShapeError, match="keep must be a share"):
        wrap(vision, "dynamicvit", keep=1.1)
    with pytest.raises(ShapeError, match="eps"):
        wrap(vision, "avit", eps=1.0)


@pytest.mark.parametrize(("depth", "layers"), [(12, (3, 6, 9)), (8, (2, 4, 6)), (5, (1, 2, 3)), (2, (1,))])
def test_layers_are_at_the_quarters(depth, layers):
    assert checked_layers(None, depth) == layers


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_that_is_made_is_where_the_weights_are(kind: Any):
    """On a device without numbers, where mixing would be refused; what must read a number cannot be asked there."""
    looker = tiny(kind).to("meta")
    pixels = torch.rand(2, 1, 24, 24, device="meta", dtype=torch.float64)
    if kind == "avit":
        assert looker.embed(pixels).device.type == looker.boxes(2).device.type == "meta"
        return
    looked = looker.look(pixels)
    for name in ("logits", "features", "boxes", "stages", "exits", "tokens", "macs"):
        assert getattr(looked, name).device.type == "meta"
