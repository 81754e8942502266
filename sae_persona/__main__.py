"""`python -m sae_persona` is `sae-persona`."""

from sae_persona.cli import main

if __name__ == "__main__":
    main()
