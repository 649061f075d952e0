"""`python -m laconic` is the command line, which is how torchrun starts it."""

from laconic.cli import main

if __name__ == "__main__":
    main()
