"""How long the page of `lookfar explore` takes for a click, for every block that has maps.

    python benchmarks/clicks.py

The image has 480x360 pixels, the block 45x60 positions and 256 channels. An answer goes from the request to its last
byte, in processor time of this process (one thread), so that other programs hardly count: the median of five clicks,
and the first answer that brings the mean map of all queries too, once an image. Writes
benchmarks/results/clicks-cpu.md.
"""

import http.client
import io
import json
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lookfar import create_block, list_blocks
from lookfar._tables import markdown_table
from lookfar.blocks import block_info
from lookfar.diagnostics import why_no_maps
from lookfar.explorer import Picture, Server, Subject

CHANNELS, WIDTH, HEIGHT, STRIDE, CLICKS = 256, 480, 360, 8, 5


def prepare(picture: Picture) -> Tensor:
    return torch.from_numpy(np.asarray(picture.image).transpose(2, 0, 1) / 255.0).float()


def ask(server: Server, route: str, body: bytes | None = None) -> tuple[object, float]:
    """An answer, and the milliseconds of processor time it took."""
    begin = time.process_time()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET" if body is None else "POST", f"/{server.token}/{route}", body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(content.decode())
    return json.loads(content), 1e3 * (time.process_time() - begin)


def clicks(block: nn.Module, image: bytes) -> tuple[float, float]:
    """Milliseconds of a click, and of the first answer with the mean map."""
    network = nn.Sequential(nn.Conv2d(3, CHANNELS, STRIDE, STRIDE), block, nn.Conv2d(CHANNELS, 11, 1)).eval()
    with Server([Subject("clicked", network, prepare)]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        number = ask(server, "image?name=noise.png", image)[0]["image"]  # pyright: ignore[reportIndexIssue]
        _, first = ask(server, f"map?image={number}&x=0.5&y=0.5&mean=1")
        places = [(0.1 + 0.15 * i, 0.9 - 0.15 * i) for i in range(CLICKS)]
        times = [ask(server, f"map?image={number}&x={x}&y={y}")[1] for x, y in places]
        server.shutdown()
    return statistics.median(times), first


def main() -> None:
    torch.set_num_threads(1)
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    rows = []
    for name in list_blocks():
        # not of a map, or not of one this small
        if block_info(name).kind in ("region", "tokens") or name == "stand_alone_stem":
            continue
        torch.manual_seed(0)
        block = create_block(name, CHANNELS)
        if why_no_maps(block):
            continue
        rows.append((f"`{name}`", *clicks(block, file.getvalue())))
        print(*rows[-1], flush=True)
    slowest = max(rows, key=lambda row: row[1])
    (Path(__file__).parent / "results" / "clicks-cpu.md").write_text(
        "# A click in `lookfar explore`\n\n"
        f"`python benchmarks/clicks.py`: torch {torch.__version__}, one thread, an image of {WIDTH}×{HEIGHT} pixels, "
        f"blocks on {HEIGHT // STRIDE}×{WIDTH // STRIDE} positions of {CHANNELS} channels. Milliseconds of processor "
        "time from the request to the last byte of the answer: a click, and the first answer, which brings the mean "
        f"map of all queries as well. The slowest click takes {slowest[1]:.0f} ms ({slowest[0]}).\n\n"
        f"{markdown_table(['block', 'click', 'with the mean map'], rows)}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
