"""``python -m fastvideo_lightning`` is the command ``fastvideo-lightning``."""

from fastvideo_lightning.cli import main

if __name__ == "__main__":
    main()
