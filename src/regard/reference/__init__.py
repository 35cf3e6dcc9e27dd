"""The reference of the public names and of the commands, written from the code: `python -m regard.reference`.

docs/api has a page for each room, from signatures and docstrings; docs/commands.md every command with its options.
"""
