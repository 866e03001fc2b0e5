"""`python -m megalodon_core` is the same program as `megalodon-core`."""

from megalodon_core.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
