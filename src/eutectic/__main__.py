"""`python -m eutectic`."""

from eutectic.cli import main

if __name__ == "__main__":
    main()
