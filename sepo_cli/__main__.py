"""`sepo`, and `python -m sepo_cli`, which is also what `accelerate launch -m sepo_cli ...` starts."""

from sepo_cli.interrupts import leave_when_told


def start() -> None:
    """Run `sepo` as a process of its own: the imports of the program may already be interrupted."""
    leave_when_told()
    from sepo_cli.main import main

    main()


if __name__ == "__main__":
    start()
