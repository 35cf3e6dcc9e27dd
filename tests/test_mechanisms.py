"""Relevance realization end to end: what is seen, and what the record says of it."""

import torch

from regard.allocate import load
from regard.mechanisms.relevance import RelevanceRealization
from regard.record import Record
from regard.relevance.tensions import States
from test_looking import Toy, picture


def test_one_look_is_the_allocator():
    eye = Toy()
    seen = RelevanceRealization(eye=eye, states=States(scope=0.5))(picture(), "what is red", 9)
    tokens, question = eye.look(picture()), eye.ask("what is red")
    want = load("relevance", scope=0.5).allocate(tokens, question, 9)
    assert seen.route == "prompt"
    assert torch.equal(seen.tokens.features, want.apply(tokens.features))
    look = seen.record.looks[0]
    assert torch.equal(look.allocation.matrix(), want.matrix())
    assert look.realization is not None
    assert look.realization.fixed == ("scope",)
    assert look.realization.fixations == ()
    assert Record.from_json(seen.record.to_json()) == seen.record


def test_several_looks_say_where_they_led():
    seen = RelevanceRealization(eye=Toy(), looks=3)(picture(), "what is red", 9)
    why = seen.record.looks[0].realization
    assert why is not None
    assert len(why.fixations) <= 2
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in why.fixations)
    assert seen.tokens.features.shape[1] == 9


def test_more_than_the_image_has_keeps_all():
    eye = Toy()
    seen = RelevanceRealization(eye=eye)(picture(), "what is red", 10_000)
    assert torch.equal(seen.tokens.features, eye.look(picture()).features[:, seen.record.looks[0].allocation.anchor[0]])
