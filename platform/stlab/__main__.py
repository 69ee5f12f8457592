"""``python -m stlab``: the command line for `ray job submit`, and for machines without the script on their path."""

from stlab.cli import main

if __name__ == "__main__":
    main()
