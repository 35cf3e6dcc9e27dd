"""Write docs/api and docs/commands.md, or with --check fail where they differ from the code."""

from regard.reference.write import main

main()
