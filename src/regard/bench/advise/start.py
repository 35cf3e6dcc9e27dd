"""The code to start with, for what leads."""

from regard.bench.advise.asked import Asked
from regard.bench.advise.candidates import ALL, Candidate

_MODEL = """import regard
from regard.vlm.processors import load_model, load_processor

name = "Qwen/Qwen2.5-VL-3B-Instruct"  # or your own
model, processor = load_model(name), load_processor(name)
content = [{"type": "image", "url": "photo.jpg"}, {"type": "text", "text": "where is the cat?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
)  # fmt: skip
"""
_BRIDGE = """from PIL import Image

from regard import VLM
from regard.train.bridge import train
from regard.train.rows import Source
from regard.train.settings import Recipe

vlm = VLM("my-encoder", "{name}", "my-language-model"{arguments})
trained, metrics = train(vlm, Source(("pairs.jsonl",)), "run", Recipe(epochs=1, batch=4))
vlm = VLM.from_pretrained("run/model")
print(vlm.answer([Image.open("photo.jpg")], ["Describe the image."]{budget}, max_new_tokens=8))
"""
_LOOKER = """import torch

{imports}

looker = {made}.eval()  # {how}
with torch.no_grad():
    seen = looker.look(torch.zeros(1, 3, {side}, {side}, dtype=torch.uint8){more})
print(seen.logits.argmax(dim=1), seen.tokens, seen.macs)
"""
_GAZE = "from regard.mechanisms.gaze_vit import GazeViT"
_FOVEATER = "from regard.mechanisms.foveated import FoveaTer"
_VISION = "from regard.attention.vision import VisionTransformer\nfrom regard.mechanisms.dynamic import wrap"
_WRAPPED = 'wrap(VisionTransformer({side}, 16, 192, 4, 3, 768), "{kind}")'
_MADE = {  # imports, the classifier, and how it is trained
    "self-attention": (_VISION, _WRAPPED.replace("{kind}", "vit"), "vit"),
    "DynamicViT": (_VISION, _WRAPPED.replace("{kind}", "dynamicvit"), "dynamicvit"),
    "EViT": (_VISION, _WRAPPED.replace("{kind}", "evit"), "evit"),
    "A-ViT": (_VISION, _WRAPPED.replace("{kind}", "avit"), "avit"),
    "gaze tokens, gaze predicted": (_GAZE, "GazeViT(10, 3, 96, 3, 4, view=128)", "gaze"),
    "self-attention, all tokens": (_GAZE, 'GazeViT(10, 3, 96, 3, 4, reading="all")', "gaze"),
    "FoveaTer, foveater": (_FOVEATER, 'FoveaTer(10, 3, 96, 2, 4, 4, backbone="efficientnet")', "foveater"),
    "FoveaTer, reading all, foveater-all": (
        _FOVEATER,
        'FoveaTer(10, 3, 96, 2, 4, 4, regions="all", backbone="efficientnet")',
        "foveater",
    ),
    "peripheral (PerViT)": (
        "from regard.mechanisms.pervit import PerViT",
        "PerViT(10, 3, {side}, 16, 192, 4, 3)",
        "pervit",
    ),
    "cascade": (
        "from regard.mechanisms.cascade import Cascade",
        "Cascade(10, 3, {side}, 16, 2, width=192, depth=4, heads=3)",
        "cascade",
    ),
    "recurrent (RAM)": (
        "from regard.mechanisms.recurrent import RecurrentAttention",
        "RecurrentAttention(10, 3, 6, 16, 3)",
        "ram",
    ),
}
_MOST = {"qformer": "queries", "resampler": "latents", "recurrent": "glimpses"}


def start(asked: Asked, one: Candidate) -> str:
    """Python that runs: on a photo.jpg, and for a bridge on parts and pairs of one's own."""
    if one.way == "classifier":
        return _classifier(asked, one)
    if one.way == "bridge":
        return _bridge(one)
    if one.keep is None:
        return (
            _MODEL
            + "words = model.generate(**inputs, max_new_tokens=32)  # all tokens: nothing to change\n"
            + ('print(processor.batch_decode(words[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])\n')
        )
    given = f'short = regard.shorten(model, inputs, "{one.name}", keep={one.keep:g}, processor=processor)\n'
    return _MODEL + given + "print(short.decode(model.generate(**short, max_new_tokens=32)))\n"


def _bridge(one: Candidate) -> str:
    if one.name == "all tokens":
        return _BRIDGE.format(name=ALL, arguments="", budget="")
    most = _MOST.get(one.name)
    arguments = f', bridge_arguments={{"{most}": {one.tokens}}}' if most else ""
    return _BRIDGE.format(name=one.name, arguments=arguments, budget=f", budget={one.tokens}")


def _classifier(asked: Asked, one: Candidate) -> str:
    imports, made, command = _MADE[one.title]
    side = -(-asked.resolution // 32) * 32  # what patches of both scales divide
    more = ", copies=1" if command == "ram" else ""
    how = f"untrained: regard train {command} --help"
    return _LOOKER.format(imports=imports, made=made.format(side=side), how=how, side=side, more=more)
