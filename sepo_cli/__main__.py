"""`python -m sepo_cli`, which is also what `accelerate launch -m sepo_cli ...` starts."""

from sepo_cli.main import main

if __name__ == "__main__":
    main()
