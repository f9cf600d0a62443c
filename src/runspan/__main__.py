"""``python -m runspan``: the command line."""

from runspan.cli import main

if __name__ == "__main__":
    main()
