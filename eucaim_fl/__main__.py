"""`python -m eucaim_fl` is the command `eucaim-fl`."""

from eucaim_fl.cli import main

if __name__ == "__main__":
    main()
