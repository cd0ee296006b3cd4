"""`python -m tilus` is the command `tilus`."""

from tilus.cli import main

if __name__ == "__main__":
    main(prog_name="tilus")
