"""A space that tokens and questions share, learned from where answers are seen (visual grounding).

    t_i = W_2 gelu(W_1 LN(x_i) + places(box_i))        q = V_2 gelu(V_1 h)        <t_i, q>: the logit of token i

h is a sentence embedding. 0 is the logit of "nowhere in the picture". Trained by `regard.train.grounding`.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.places import Places


class Grounding(nn.Module):
    """width: of the tokens' features; asked: of sentence embeddings; dim: of the space. dropout: in training."""

    def __init__(self, width: int, asked: int, dim: int = 128, hidden: int = 384, dropout: float = 0.3) -> None:
        super().__init__()
        self.dim = dim
        self.norm, self.map, self.places = nn.LayerNorm(width), nn.Linear(width, hidden), Places(hidden)
        self.out = nn.Linear(hidden, dim)
        self.question = nn.Sequential(nn.Linear(asked, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def tokens(self, features: Float[Tensor, "b n c"], boxes: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n d"]:
        """Tokens in the space."""
        read = self.map(self.dropout(self.norm(features))) + self.places(boxes)
        return self.out(self.dropout(F.gelu(read)))

    def questions(self, heard: Float[Tensor, "q e"]) -> Float[Tensor, "q d"]:
        """Sentence embeddings in the space."""
        return self.question(heard)
