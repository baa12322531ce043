"""`python -m icnfs.cli`: the `icnfs` command."""

from icnfs.cli.app import main

if __name__ == "__main__":
    main()
