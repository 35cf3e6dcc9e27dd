"""Longformer's and BigBird's attention against transformers, and against dense attention under masks made in loops."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import BigBirdConfig, BigBirdModel, LongformerConfig, LongformerModel
from transformers.models.big_bird.modeling_big_bird import BigBirdAttention, BigBirdBlockSparseAttention

from attention_cost import assert_linear
from attention_parity import EXACT, SINGLE, assert_differs, assert_parity, assert_same, randomised
from regard.attention.block_sparse import BlockSparseAttention
from regard.attention.sliding import SlidingWindowAttention, places
from regard.errors import ModelError, ShapeError

BATCH, TOKENS, HEADS, WIDTH = 3, 29, 2, 5
DIM = HEADS * WIDTH


def drawn(*shape, seed=2, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lengths(*found, tokens=TOKENS):
    return torch.arange(tokens) < torch.tensor(found)[:, None]


def dense(q, k, v, counts, heads=HEADS):
    """softmax over keys, each as often as `counts` (B, H, Q, K) says; rows of none are 0. q, k, v: (B, N, D)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    shares = counts * (scores - scores.amax(-1, keepdim=True).detach()).exp()
    total = shares.sum(-1, keepdim=True)
    return (shares / torch.where(total > 0, total, 1) @ v).transpose(1, 2).flatten(2)


class TestSliding:
    WINDOW = 6
    SEEN = lengths(29, 18, 23)
    GLOBAL = torch.tensor([[0, 17, -1], [3, -1, -1], [22, 5, 0]])

    @pytest.fixture
    def x(self):
        return drawn(BATCH, TOKENS, DIM)

    def model(self, seed=0, window=WINDOW, dtype=torch.float64) -> Any:
        config = LongformerConfig(
            attention_window=[window, window + 4],
            hidden_size=DIM,
            num_attention_heads=HEADS,
            num_hidden_layers=2,
            intermediate_size=13,
            vocab_size=31,
            max_position_embeddings=80,
            pad_token_id=1,
        )
        return randomised(LongformerModel(config), seed, dtype)

    def theirs(self, module, seen, named):
        """LongformerAttention without its residual and norm, on tokens padded to a multiple of the window."""

        def run(t):
            fill = -t.shape[1] % module.self.config.attention_window[module.self.layer_id]
            state = F.pad(seen.long(), (0, fill)) * 10_000 - 10_000
            state += F.pad(named.long(), (0, fill)) * 10_000
            given = {"is_index_masked": state < 0, "is_index_global_attn": state > 0}
            y = module.self(F.pad(t, (0, 0, 0, fill)), attention_mask=state, is_global_attn=bool(named.any()), **given)
            return module.output.dense(y[0])[:, : t.shape[1]] * seen[..., None]

        return run

    def ours(self, layer, seen, global_tokens):
        return lambda t: layer(t, seen, global_tokens) * seen[..., None]

    def marks(self, global_tokens, seen):
        marked = torch.zeros(len(seen), seen.shape[1], dtype=torch.bool)
        for row, tokens in enumerate(global_tokens.tolist()):
            for one in tokens:
                if one >= 0 and seen[row, one]:
                    marked[row, one] = True
        return marked

    def oracle(self, layer, seen, global_tokens, half=None):
        """One dense attention with a mask made pair by pair, and another for the rows of global tokens."""
        half = layer.window // 2 if half is None else half
        marked = self.marks(global_tokens, seen)
        far = torch.tensor([[abs(i - j) > half for j in range(seen.shape[1])] for i in range(seen.shape[1])])
        counts = (seen[:, None] & ~(far & ~marked[:, None]))[:, None].double()

        def run(t):
            q, k, v = layer.qkv(t).chunk(3, dim=-1)
            local = dense(q, k, v, counts)
            k, v = layer.kv_global(t).chunk(2, dim=-1)
            wide = dense(layer.q_global(t), k, v, seen[:, None, None].double())
            rows = counts.any(-1)[:, 0] | marked
            return layer.out(torch.where(marked[..., None], wide, local)) * rows[..., None]

        return run

    @pytest.mark.parametrize("layer", [0, 1])
    @pytest.mark.parametrize("named", [True, False])
    def test_is_longformers(self, x, layer, named):
        # its softmax is of float32, and in float64 the gradients of rows that see nothing are not numbers
        module = self.model(dtype=torch.float32).encoder.layer[layer].attention
        x, tokens = x.float(), self.GLOBAL if named else None
        marked = self.marks(self.GLOBAL, self.SEEN) & named
        ours = SlidingWindowAttention.from_transformers(module)
        assert ours.window == (6, 10)[layer]
        assert_parity(self.ours(ours, self.SEEN, tokens), self.theirs(module, self.SEEN, marked), x, SINGLE)
        bare = SlidingWindowAttention.from_transformers(module.self)
        alone, whole = bare(x, self.SEEN, tokens), ours(x, self.SEEN, tokens)
        assert_same(module.output.dense(alone)[self.SEEN], whole[self.SEEN], 1e-6)

    def test_a_mutation_of_longformer_is_seen(self, x):
        module = self.model().encoder.layer[0].attention
        ours = SlidingWindowAttention.from_transformers(module)
        run, marked = self.ours(ours, self.SEEN, self.GLOBAL), self.marks(self.GLOBAL, self.SEEN)
        assert_differs(run, self.theirs(module, torch.ones_like(self.SEEN), marked), x)
        assert_differs(run, self.theirs(module, self.SEEN, torch.zeros_like(marked)), x)
        assert_differs(run, self.theirs(self.model(window=8).encoder.layer[0].attention, self.SEEN, marked), x)
        for one, other in (("query", "key"), ("query_global", "query"), ("key_global", "value_global")):
            changed = self.model().encoder.layer[0].attention
            first, second = getattr(changed.self, one), getattr(changed.self, other)
            setattr(changed.self, one, second)
            setattr(changed.self, other, first)
            assert_differs(run, self.theirs(changed, self.SEEN, marked), x)

    def test_lifts_every_layer_of_a_whole_model(self):
        model, kept = self.model(), []
        for layer in model.encoder.layer:
            layer.attention.register_forward_hook(lambda part, given, out: kept.append((part, given[0], out[0])))
        ids = torch.randint(2, 31, (BATCH, TOKENS), generator=torch.Generator().manual_seed(5))
        marked = self.marks(self.GLOBAL, self.SEEN)
        with torch.no_grad():
            model(ids, attention_mask=self.SEEN.long(), global_attention_mask=marked.long())
            assert len(kept) == 2
            for part, given, out in kept:
                x = given[:, :TOKENS]
                y = SlidingWindowAttention.from_transformers(part)(x, self.SEEN, places(marked))
                y, out = part.output.LayerNorm(y + x)[self.SEEN], out[:, :TOKENS][self.SEEN]
                assert_same(y, out, SINGLE)

    @pytest.mark.parametrize("window", [2, 6, 28, 80])
    @pytest.mark.parametrize("tokens", [1, 2, 29, 67, 131])
    def test_is_dense_attention_under_a_mask(self, window, tokens):
        x, layer = drawn(2, tokens, DIM), randomised(SlidingWindowAttention(DIM, HEADS, window))
        seen = torch.rand(2, tokens, generator=torch.Generator().manual_seed(7)) < 0.8
        seen[0, 0] = seen[1, -1] = True
        named = torch.tensor([[0, -1], [tokens - 1, tokens // 2]])
        assert_parity(lambda t: layer(t, seen, named), self.oracle(layer, seen, named), x)
        none, full = torch.full((2, 1), -1), torch.ones(2, tokens, dtype=torch.bool)
        assert_parity(layer, self.oracle(layer, full, none), x)
        assert_same(layer(x, full, none), layer(x))
        if window < tokens:
            assert_differs(layer, self.oracle(layer, full, none, window // 2 + 1), x)
            assert_differs(layer, self.oracle(layer, full, none, window // 2 - 1), x)

    def test_many_global_tokens_and_one_named_twice(self, x):
        layer = randomised(SlidingWindowAttention(DIM, HEADS, self.WINDOW))
        many = torch.stack([torch.randperm(18, generator=torch.Generator().manual_seed(s))[:7] for s in range(3)])
        assert many.shape[1] >= WIDTH > self.GLOBAL.shape[1]  # both ways to the keys
        assert_parity(lambda t: layer(t, self.SEEN, many), self.oracle(layer, self.SEEN, many), x)
        twice = torch.cat((self.GLOBAL[:, :1], self.GLOBAL), dim=1)
        assert_same(layer(x, self.SEEN, twice), layer(x, self.SEEN, self.GLOBAL), EXACT)
        masked = torch.cat((self.GLOBAL, torch.tensor([[-1], [28], [25]])), dim=1)
        assert_same(layer(x, self.SEEN, masked), layer(x, self.SEEN, self.GLOBAL), EXACT)

    def test_weights_are_of_the_fast_path(self, x):
        layer = randomised(SlidingWindowAttention(DIM, HEADS, self.WINDOW))
        weights, marked = layer.weights(x, self.SEEN, self.GLOBAL), self.marks(self.GLOBAL, self.SEEN)
        v, wide = layer.qkv(x)[..., 2 * DIM :], layer.kv_global(x)[..., DIM:]
        local, read = (
            torch.einsum("bhqk,bkhd->bqhd", weights, part.unflatten(-1, (HEADS, WIDTH))).flatten(2)
            for part in (v, wide)
        )
        assert_same(layer(x, self.SEEN, self.GLOBAL), layer.out(torch.where(marked[..., None], read, local)))
        plain = torch.einsum("bhqk,bkhd->bqhd", layer.weights(x), v.unflatten(-1, (HEADS, WIDTH)))
        assert_same(layer(x), layer.out(plain.flatten(2)))

    def test_what_sees_nothing_is_zero(self, x):
        layer: Any = randomised(SlidingWindowAttention(DIM, HEADS, 2))
        seen = torch.ones(BATCH, TOKENS, dtype=torch.bool)
        seen[0], seen[1, 4:11] = False, False
        x.requires_grad_()
        y = layer(x, seen, torch.tensor([[0], [-1], [28]]))
        assert not y[0].any()
        assert not y[1, 5:10].any()
        assert y[1, 4].any()
        weights = layer.weights(x, seen, torch.tensor([[0], [-1], [28]]))
        assert not weights[0].any()
        assert not weights[1, :, 5:10].any()
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not x.grad[0].any()

    def test_places(self):
        mask = torch.tensor([[False, True, False, True], [False, False, True, False], [False] * 4])
        assert places(mask).tolist() == [[1, 3], [2, -1], [-1, -1]]
        assert places(mask[:0]).shape == (0, 0)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, x):
        layer = SlidingWindowAttention(DIM, HEADS, 6).double()
        with pytest.raises(ShapeError, match="dim=11 and heads=2"):
            SlidingWindowAttention(11, 2, 6)
        for wrong in (0, 3, -2):
            with pytest.raises(ShapeError, match=f"window must be even and 2 or more, got {wrong}"):
                SlidingWindowAttention(DIM, HEADS, wrong)
        with pytest.raises(ShapeError, match=r"x must be floats of shape \(B, N, 10\)"):
            layer(x[..., :9])
        for mask in (self.SEEN.double(), self.SEEN[:1], self.SEEN[:, None].expand(-1, TOKENS, -1)):
            with pytest.raises(ShapeError, match="mask must be bool"):
                layer(x, mask)
        for named in (self.GLOBAL.int(), self.GLOBAL[:1], self.GLOBAL[0], self.SEEN):
            with pytest.raises(ShapeError, match="global_tokens must be int64"):
                layer(x, None, named)
        with pytest.raises(ShapeError, match="global_tokens must be below 29 tokens, got 29"):
            layer(x, None, self.GLOBAL.clamp(max=1) + 28)
        with pytest.raises(ModelError, match="Linear is not Longformer's attention"):
            SlidingWindowAttention.from_transformers(torch.nn.Linear(2, 2))

    def test_few_tokens_and_half_precision(self, x):
        layer = randomised(SlidingWindowAttention(DIM, HEADS, 6), dtype=torch.float32)
        assert layer(torch.zeros(0, 7, DIM)).shape == (0, 7, DIM)
        assert layer(torch.zeros(0, 7, DIM), None, torch.zeros(0, 1).long()).shape == (0, 7, DIM)
        wanted = layer(x.float(), self.SEEN, self.GLOBAL)
        for dtype in (torch.float16, torch.bfloat16):
            half = SlidingWindowAttention(DIM, HEADS, 6).to(dtype)
            half.load_state_dict(layer.state_dict())
            got = half(x.to(dtype), self.SEEN, self.GLOBAL)
            assert got.dtype == dtype
            assert (got.float() - wanted).abs().max() < 0.1

    def test_round_trip(self, x, tmp_path):
        layer = randomised(SlidingWindowAttention(DIM, HEADS, 6, bias=False, project=False))
        layer.save_pretrained(tmp_path)
        again = SlidingWindowAttention.from_pretrained(tmp_path, local_files_only=True).double()
        assert_same(again(x, None, self.GLOBAL), layer(x, None, self.GLOBAL), EXACT)

    def test_cost_is_linear(self):
        layer, named = SlidingWindowAttention(16, 2, 64), torch.tensor([[0, 5]])
        assert_linear(lambda t: layer(t, torch.ones(t.shape[:2]).bool(), named), 1024, 16)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
    @pytest.mark.usefixtures("compiler")
    def test_compiles_whole(self, x):
        layer = randomised(SlidingWindowAttention(DIM, HEADS, 6))
        compiled = torch.compile(layer, fullgraph=True)
        assert_same(compiled(x, self.SEEN, self.GLOBAL), layer(x, self.SEEN, self.GLOBAL))
        assert_same(compiled(x), layer(x))


class TestBlockSparse:
    TOKENS, BLOCK = 64, 4
    SEEN = lengths(64, 51, 62, tokens=64)

    @pytest.fixture
    def x(self):
        return drawn(BATCH, self.TOKENS, DIM)

    def module(self, random=1, train=False, seed=0) -> Any:
        config = BigBirdConfig(
            hidden_size=DIM,
            num_attention_heads=HEADS,
            num_random_blocks=random,
            block_size=self.BLOCK,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=128,
        )
        return randomised(BigBirdAttention(config, seed=11), seed).train(train)

    def theirs(self, module, seen):
        """BigBirdAttention without its residual and norm, under the masks that its model makes."""

        def run(t):
            blocked, band, rows, keys = BigBirdModel.create_masks_for_block_sparse_attn(seen.to(t), self.BLOCK)
            y, _ = module.self(t, band, rows, keys, blocked, blocked)
            return module.output.dense(y) * seen[..., None]

        return run

    def ours(self, layer, seen):
        return lambda t: layer(t, seen) * seen[..., None]

    def oracle(self, layer, seen):
        """Dense attention where each pair counts as often as its blocks are named: by loops over blocks."""
        last, count = -(-seen.shape[1] // layer.block) - 1, seen.shape[1]
        named = torch.zeros(HEADS, last + 1, last + 1, dtype=torch.float64)
        for head in range(HEADS):
            for row in range(last + 1):
                near = {row - 1, row, row + 1, 0, last} & set(range(last + 1))
                drawn_too = [] if row in (0, last) else [j for j in layer.blocks[head, row - 1].tolist() if j >= 0]
                for j in [*(range(last + 1) if row in (0, last) else near), *drawn_too]:
                    named[head, row, j] += 1
        named = named.repeat_interleave(layer.block, 1).repeat_interleave(layer.block, 2)[:, :count, :count]
        counts = named * seen[:, None, None]

        def run(t):
            q, k, v = layer.qkv(t).chunk(3, dim=-1)
            return layer.out(dense(q, k, v, counts)) * counts.any(-1).any(1)[..., None]

        return run

    @pytest.mark.parametrize("random", [1, 3])
    @pytest.mark.parametrize("train", [False, True])
    def test_is_bigbirds(self, x, random, train):
        module = self.module(random, train)
        layer = BlockSparseAttention.from_transformers(module, self.TOKENS)
        assert bool(layer.blocks.any()) == train  # in evaluation the reference takes the first block for all
        assert_parity(self.ours(layer, self.SEEN), self.theirs(module, self.SEEN), x)
        bare = BlockSparseAttention.from_transformers(module.self, self.TOKENS)
        assert_same(module.output.dense(bare(x)), layer(x))

    @pytest.mark.parametrize("positions", [1024, 4096])
    @pytest.mark.parametrize("train", [False, True])
    def test_is_bigbirds_by_the_other_plan_too(self, train, positions):
        """Of 1024, 3072 and 4096 tokens the reference draws blocks in another way, which the longest text decides."""
        config = BigBirdConfig(
            hidden_size=16,
            num_attention_heads=2,
            block_size=64,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=positions,
        )
        module: Any = randomised(BigBirdBlockSparseAttention(config, seed=11)).train(train)
        layer = BlockSparseAttention.from_transformers(module, 1024)
        assert layer.blocks.shape == (2, 14, 3)
        assert bool(layer.blocks.any()) == train
        x, seen = drawn(2, 1024, 16), lengths(1024, 711, tokens=1024)

        def theirs(t):
            blocked, band, rows, keys = BigBirdModel.create_masks_for_block_sparse_attn(seen.to(t), 64)
            return module(t, band, rows, keys, blocked, blocked)[0] * seen[..., None]

        assert_parity(self.ours(layer, seen), theirs, x)
        if train:
            layer.blocks.copy_(layer.blocks.roll(1, dims=0))  # each head has its own
            assert_differs(self.ours(layer, seen), theirs, x)

    def test_a_mutation_of_bigbird_is_seen(self, x):
        module = self.module(train=True)
        layer = BlockSparseAttention.from_transformers(module, self.TOKENS)
        run = self.ours(layer, self.SEEN)
        assert_differs(run, self.theirs(module, torch.ones_like(self.SEEN)), x)
        assert_differs(run, self.theirs(self.module(train=False), self.SEEN), x)
        assert_differs(run, self.theirs(self.module(2, train=True), self.SEEN), x)
        module.self.query, module.self.key = module.self.key, module.self.query
        assert_differs(run, self.theirs(module, self.SEEN), x)

    @pytest.mark.parametrize("slab", [1, 24, 1024])  # 1, 3 and all blocks of 4 tokens of 2 samples together
    @pytest.mark.parametrize("tokens", [1, 3, 5, 9, 13, 29, 61])
    def test_is_dense_attention_under_a_mask(self, tokens, slab, monkeypatch):
        monkeypatch.setattr("regard.attention.block_sparse.SLAB", slab)
        x = drawn(2, tokens, DIM)
        layer = randomised(BlockSparseAttention(DIM, HEADS, tokens, 4, 2))
        seen = torch.rand(2, tokens, generator=torch.Generator().manual_seed(7)) < 0.7
        seen[0, 0] = seen[1, -1] = True
        full = torch.ones(2, tokens, dtype=torch.bool)
        assert_parity(lambda t: layer(t, seen), self.oracle(layer, seen), x)
        assert_parity(layer, self.oracle(layer, full), x)
        if tokens > 28:
            other = BlockSparseAttention(DIM, HEADS, tokens, 4, 2, seed=1).double()
            other.load_state_dict({**layer.state_dict(), "blocks": other.blocks})
            assert_differs(layer, self.oracle(other, full), x)

    def test_random_blocks_are_new_ones(self):
        blocks = BlockSparseAttention(DIM, HEADS, 61, 4, 3).blocks
        assert blocks.shape == (HEADS, 14, 3)
        for row in range(1, 15):
            for found in blocks[:, row - 1].tolist():
                assert len({*found, 0, 15, row - 1, row, row + 1} - {0, 15, row - 1, row, row + 1}) == 3
        assert not torch.equal(blocks[0], blocks[1])
        assert not torch.equal(blocks, BlockSparseAttention(DIM, HEADS, 61, 4, 3, seed=1).blocks)
        assert BlockSparseAttention(DIM, HEADS, 20, 4, 3).blocks[0].tolist() == [[3, -1, -1], [-1, -1, -1], [1, -1, -1]]

    def test_weights_are_of_the_fast_path(self, x):
        for layer in (
            randomised(BlockSparseAttention(DIM, HEADS, self.TOKENS, 4, 2)),
            BlockSparseAttention.from_transformers(self.module(), self.TOKENS),
        ):
            weights = layer.weights(x, self.SEEN)
            v = layer.qkv(x)[..., 2 * DIM :].unflatten(-1, (HEADS, WIDTH))
            read = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
            assert_same(layer(x, self.SEEN), layer.out(read))
            assert (weights.sum(-1) - 1).abs().max() < EXACT

    def test_what_sees_nothing_is_zero(self, x):
        layer: Any = randomised(BlockSparseAttention(DIM, HEADS, self.TOKENS, 4, 0))
        seen = torch.ones(BATCH, self.TOKENS, dtype=torch.bool)
        seen[0], seen[1, :4], seen[1, 24:44], seen[1, -4:] = False, False, False, False
        x.requires_grad_()
        y = layer(x, seen)
        assert not y[0].any()
        assert not y[1, 28:40].any()
        assert y[1, 27].any()
        assert not layer.weights(x, seen)[1, :, 28:40].any()
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not x.grad[0].any()

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, x):
        layer = BlockSparseAttention(DIM, HEADS, self.TOKENS, 4).double()
        with pytest.raises(ShapeError, match="dim=11 and heads=2"):
            BlockSparseAttention(11, 2, 64)
        for tokens, block, random in ((0, 4, 1), (5, 0, 1), (5, 4, -1)):
            with pytest.raises(ShapeError, match=f"got tokens={tokens}, block={block} and random={random}"):
                BlockSparseAttention(DIM, HEADS, tokens, block, random)
        with pytest.raises(ShapeError, match=r"x must be floats of shape \(B, N, 10\)"):
            layer(x[..., :9])
        for wrong in (x[:, :60], torch.cat((x, x), 1)):
            with pytest.raises(ShapeError, match=f"x must have 61 to 64 tokens.*got {wrong.shape[1]}"):
                layer(wrong)
        for mask in (self.SEEN.double(), self.SEEN[:1], self.SEEN[:, None].expand(-1, self.TOKENS, -1)):
            with pytest.raises(ShapeError, match="mask must be bool"):
                layer(x, mask)
        with pytest.raises(ModelError, match="Linear is not BigBird's"):
            BlockSparseAttention.from_transformers(torch.nn.Linear(2, 2), 64)

    def test_half_precision_and_an_empty_batch(self, x):
        layer = randomised(BlockSparseAttention(DIM, HEADS, self.TOKENS, 4), dtype=torch.float32)
        assert layer(torch.zeros(0, 61, DIM)).shape == (0, 61, DIM)
        wanted = layer(x.float(), self.SEEN)
        for dtype in (torch.float16, torch.bfloat16):
            half = BlockSparseAttention(DIM, HEADS, self.TOKENS, 4).to(dtype)
            half.load_state_dict(layer.state_dict())
            got = half(x.to(dtype), self.SEEN)
            assert got.dtype == dtype
            assert (got.float() - wanted).abs().max() < 0.1

    def test_round_trip_keeps_the_blocks(self, x, tmp_path):
        layer = randomised(BlockSparseAttention(DIM, HEADS, self.TOKENS, 4, 1, bias=False, project=False))
        layer.blocks.zero_()
        layer.save_pretrained(tmp_path)
        again = BlockSparseAttention.from_pretrained(tmp_path, local_files_only=True).double()
        assert not again.blocks.any()
        assert_same(again(x), layer(x), EXACT)

    def test_cost_is_linear(self):
        layers = {tokens: BlockSparseAttention(16, 2, tokens, 16) for tokens in (1024, 2048)}
        assert_linear(lambda t: layers[t.shape[1]](t), 1024, 16)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
    @pytest.mark.usefixtures("compiler")
    def test_compiles_whole(self, x):
        layer = randomised(BlockSparseAttention(DIM, HEADS, self.TOKENS, 4))
        assert_same(torch.compile(layer, fullgraph=True)(x, self.SEEN), layer(x, self.SEEN))
