"""What ``lookfar explore`` does and prints."""

from collections.abc import Sequence

from lookfar.explorer.server import Server
from lookfar.explorer.subjects import open_subjects


def explore_command(networks: Sequence[str], *, port: int = 0, browser: bool = False) -> int:
    """Serve the page until Ctrl-C.

    Args:
        networks: Folders of trials, or files.
        port: 0 for a free one.
        browser: Open the page.

    Returns:
        The exit status.

    Raises:
        ValueError: No such network, or one without blocks; a port that is no port or is taken.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be from 1 to 65535, or 0 for a free one, got {port}")
    subjects = open_subjects(networks)
    for subject in subjects:
        if subject.data is not None and not subject.samples():
            print(f"The images of {subject.name} are not at {subject.data.name} any more: show it some of your own.")
    try:
        server = Server(subjects, port)
    except OSError:
        raise ValueError(f"port {port} is taken or not allowed: choose another, or leave --port out") from None
    with server:
        print(f"{server.url}\nOnly this computer reaches it, by this address alone. Ctrl-C ends it.", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("Ended.")
    return 0
