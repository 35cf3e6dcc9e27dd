"""Attention layers of the literature, each equal to an independent implementation, to use alone: one mechanism a file.

`Class.from_transformers(module)` lifts a part out of any Hugging Face model; `save_pretrained` and `from_pretrained`
keep ours. docs/attention.md shows what each looks at.
"""
