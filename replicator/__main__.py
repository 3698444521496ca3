"""``python -m replicator``: the command line."""

from replicator.cli import main

if __name__ == "__main__":
    main()
