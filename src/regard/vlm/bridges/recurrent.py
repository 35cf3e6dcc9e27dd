"""Glimpses one after another as the bridge: after RAM (arXiv 1406.6247), with soft glimpses as in DRAW (1502.04623).

    h_0 = V [mean_i f(x_i), sum_i softmax_i(n_i) f(x_i)];    l_t = sigmoid(L h_t),    r_t = softplus(R h_t)
    g_t = sum_i a_ti f(x_i),    a_ti = softmax_i(-|p_i - l_t|^2 / 2 r_t^2 + h_t U f(x_i) / sqrt(d) + b n_i)
    h_t+1 = GRU(g_t, h_t),    n how near each token is to the question (`heard`)

A glimpse is a Gaussian about l_t of width r_t, times what the state looks for, so its gradient reaches where it looks
and nothing needs REINFORCE. Each glimpse is a token: the budget is the number of glimpses, and they cannot be made at
once.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from regard.allocation import Attribution
from regard.tokens import Question, VisualTokens
from regard.vlm.bridges.bridge import Bridge, Bridged, Reader, heard


class RecurrentBridge(Bridge):
    """hidden: width of the state. glimpses: at most."""

    name = "recurrent"
    hears = True

    def __init__(self, width: int, dim: int, hidden: int | None = None, glimpses: int = 64) -> None:
        super().__init__(width, dim)
        hidden = hidden or dim
        self.most = glimpses
        self.read = Reader(width, hidden)
        self.hear = nn.Parameter(torch.zeros(()))
        self.begin, self.seek = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.place, self.core = nn.Linear(hidden, 3), nn.GRUCell(hidden, hidden)
        self.out = nn.Linear(2 * hidden, dim)

    def bridged(self, tokens: VisualTokens, question: Question | None, budget: int) -> Bridged:
        read, valid = self.read(tokens.features, tokens.boxes), tokens.valid
        centres = ((tokens.boxes[..., :2] + tokens.boxes[..., 2:]) / 2).to(read.dtype)
        near = heard(tokens, question).to(read.dtype)
        shares = (
            torch.stack((torch.zeros_like(near), near), dim=1).masked_fill(~valid[:, None], -torch.inf).softmax(dim=2)
        )
        state = self.begin((shares @ read).flatten(1))
        seen, looked = [], []
        for _ in range(budget):
            at, radius = self.place(state).split((2, 1), dim=1)
            away = (centres - at.sigmoid()[:, None]).square().sum(dim=2) / (2 * F.softplus(radius - 2).square() + 1e-4)
            wanted = (read @ self.seek(state)[..., None])[..., 0] / math.sqrt(read.shape[2])
            weights = (wanted - away + self.hear * near).masked_fill(~valid, -torch.inf).softmax(dim=1)
            glimpse = (weights[:, None] @ read)[:, 0]
            state = self.core(glimpse, state)
            seen.append(torch.cat((glimpse, state), dim=1))
            looked.append(weights)
        features = self.out(torch.stack(seen, dim=1))
        reading = None if self.training else Attribution(torch.stack(looked, dim=1).detach())
        return Bridged(features, torch.ones_like(features[..., 0], dtype=torch.bool), reading)
