"""`python -m mirasol_cli`, the form that torchrun starts."""

from mirasol_cli.cli.app import main

if __name__ == "__main__":
    main()
