"""``python -m stlab``: the same command line, for `ray job submit` and wherever no script is on the path."""

from stlab.cli import main

if __name__ == "__main__":
    main()
