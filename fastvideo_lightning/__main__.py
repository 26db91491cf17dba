"""Where the command `fastvideo-lightning` and `python -m fastvideo_lightning` begin."""

import sys


def main() -> None:
    """Run the command; Ctrl-C while it is imported ends it as it does later."""
    try:
        from fastvideo_lightning.cli.app import main as run_command
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped.\n")
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    main()
