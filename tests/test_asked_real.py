"""The real asked scenes (slow): nothing leaks between splits, and who reads the questions alone does not do well."""

import hashlib
from collections import Counter, defaultdict

import pytest

from regard.bench.tasks import asked
from regard.bench.tasks.asked import wording
from regard.bench.tasks.cutouts import kin_of

pytestmark = pytest.mark.slow
TRAIN, TEST = 2500, 800  # scenes
CHANCE = {"what": 0.03, "where": 1 / 9, "exists": 0.5, "count": 1 / 6, "colour": 1 / 8, "next": 0.03, "read": 0.08}
ROOM = 0.05  # above chance
Pairs = list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pairs]:
    counts = {"train": TRAIN, "val": 300, "test": TEST, "new": 300}
    return {
        split: [pair[:3] for index in range(count) for pair in asked.asked(split, index).pairs]
        for split, count in counts.items()
    }


def digest(image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def scored(pairs: Pairs, guess) -> dict[str, float]:
    right = defaultdict(list)
    for kind, question, answer in pairs:
        right[kind].append(guess(kind, question) == answer)
    return {kind: sum(of) / len(of) for kind, of in right.items()}


def test_no_picture_background_or_digit_is_in_two_splits():
    stocks = {split: asked.stock(split) for split in asked.SPLITS}
    for kind in ("pictures", "backgrounds", "digits"):
        seen = {}
        for split in ("train", "val", "test", "new"):
            stock = stocks[split]
            if kind == "pictures":
                seen[split] = {digest(cut.image) for of in stock.things.values() for cut in of}
            elif kind == "backgrounds":
                seen[split] = {digest(photo) for photo in stock.backgrounds.values()}
            else:
                seen[split] = {hash(digit.tobytes()) for digit in stock.digits}
        for one, other in (("train", "val"), ("train", "test"), ("train", "new"), ("val", "test"), ("val", "new")):
            assert not seen[one] & seen[other], (kind, one, other)
    assert {*stocks["val"].things, *stocks["test"].things} <= {*stocks["train"].things}
    assert min(len(stocks[split].things) for split in ("val", "test")) >= 80
    assert len(stocks["new"].things) >= 30


def test_new_names_are_never_in_training(pairs: dict[str, Pairs]):
    new = set(asked.stock("new").things)
    assert not {kin_of(name) for name in new} & {kin_of(name) for name in asked.stock("train").things}
    for index in range(200):
        scene = asked.asked("new", index)
        assert {thing.name for thing in scene.things if thing.kind == "cutout"} <= new
        assert not {thing.name for thing in asked.asked("train", index).things} & new
    words = {token for name in new for token in wording.tokens(name)}
    for split in ("train", "val", "test"):
        assert not words & {token for _, *texts in pairs[split] for text in texts for token in wording.tokens(text)}
    assert {kind for kind, *_ in pairs["new"]} == {"where", "exists"}


def test_no_word_is_outside_the_vocabulary(pairs: dict[str, Pairs]):
    known = set(asked.vocabulary())
    for split, of in pairs.items():
        said = {token for _, *texts in of for text in texts for token in wording.tokens(text)}
        assert said <= known, split


def test_who_reads_the_questions_alone_does_not_do_well(pairs: dict[str, Pairs]):
    by_text, by_kind = defaultdict(Counter), defaultdict(Counter)
    for kind, question, answer in pairs["train"]:
        by_text[question][answer] += 1
        by_kind[kind][answer] += 1

    def blind(kind: str, question: str) -> str:
        return (by_text.get(question) or by_kind[kind]).most_common(1)[0][0]

    for split in ("test", "new"):
        majority = scored(pairs[split], lambda kind, _: by_kind[kind].most_common(1)[0][0])
        found = scored(pairs[split], blind)
        print(split, len(pairs[split]), "majority of the kind:", majority, "of the text:", found)
        for kind, chance in CHANCE.items():
            if kind in found:
                assert max(found[kind], majority[kind]) <= chance + ROOM, (split, kind)


def test_missing_is_in_no_place_more_often(pairs: dict[str, Pairs]):
    for split in ("train", "test"):
        named = [(question, answer) for kind, question, answer in pairs[split] if kind == "missing"]
        at = Counter()
        for question, answer in named:
            before = question.split(f" {answer}")[0] if f" {answer}" in question else ""
            at["first" if "," not in before and " or " not in before else "third" if " or" in before else "second"] += 1
        print(split, at)
        assert max(at.values()) / len(named) < 1 / 3 + ROOM


def test_answers_are_balanced(pairs: dict[str, Pairs]):
    for kind, answers in (("where", wording.PLACES), ("count", wording.NUMBERS), ("colour", wording.COLOURS)):
        for split in ("train", "test"):
            said = Counter(answer for of, _, answer in pairs[split] if of == kind)
            shares = {answer: said[answer] / said.total() for answer in answers}
            print(split, kind, {answer: round(share, 3) for answer, share in shares.items()})
            assert set(said) == set(answers)
            assert max(shares.values()) < 1 / len(answers) + 0.04
