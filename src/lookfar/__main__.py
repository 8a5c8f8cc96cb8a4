"""`lookfar` and `python -m lookfar`."""


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends it as later, without a traceback."""
    try:
        from lookfar.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
