"""The page in headless Chromium, where there is one: clicks and arrow keys change the maps, nothing else is asked."""

import html
import json
import re
import shutil
import subprocess
import threading

import pytest
import torch
from torch import nn

from lookfar import create_block
from lookfar.explorer import Picture, Server, Subject, server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

# what a user does, after the page has opened with the first image, and what is seen after each step
ACTS = """
const seen = [], canvas = () => maps.querySelector("canvas").toDataURL();
const wait = ms => new Promise(done => setTimeout(done, ms));
const busy = () => document.body.classList.contains("busy");
const settled = async () => {
  for (let k = 0; k < 200 && busy(); k++) await wait(50);
  await wait(50);
};
(async () => {
  await wait(500);
  await settled();
  seen.push(canvas());
  const box = stage.getBoundingClientRect();
  stage.dispatchEvent(new MouseEvent("click", { clientX: box.left + 3, clientY: box.top + 3, bubbles: true }));
  await settled();
  seen.push(canvas());
  stage.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  await settled();
  seen.push(canvas());
  upload(new File(["no image"], "notes.txt"));
  await settled();
  const kinds = () => maps.querySelectorAll("figure")[3].querySelector("canvas").toDataURL(), mean = kinds();
  const buttons = [...which.querySelectorAll("button")], ofKinds = [];
  for (const button of buttons) {
    button.click();
    ofKinds.push(kinds());
  }
  const asked = performance.getEntriesByType("resource").map(entry => new URL(entry.name).host);
  const told = { images: new Set(seen).size, message: message.textContent, hosts: [...new Set(asked)] };
  told.offered = which.textContent;
  told.kinds = new Set(ofKinds).size;
  told.mean = ofKinds[0] === mean;
  told.which = [...maps.querySelectorAll(".this")].map(span => span.textContent);
  told.pressed = which.querySelector("[aria-pressed=true]").textContent;
  told.read = readout.textContent;
  told.figures = [...maps.querySelectorAll("figcaption")].map(caption => caption.textContent);
  told.canvases = maps.querySelectorAll("canvas").length;
  document.title = "told:" + JSON.stringify(told);
})();
"""


def test_clicks_keys_and_a_bad_file(tmp_path, monkeypatch):
    torch.manual_seed(0)
    shared, pooled = create_block("nonlocal", 8), create_block("asymmetric_nonlocal", 8)
    two = create_block("disentangled_nonlocal", 8)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), shared, shared, pooled, two, nn.Conv2d(8, 3, 1)).eval()
    for block in (shared, two):
        nn.init.normal_(block.query.weight, std=5)
    nn.init.normal_(two.mask.weight, std=5)
    subject = Subject(
        "tiny", network, lambda picture: torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(1))
    )
    from PIL import Image

    monkeypatch.setattr(Subject, "samples", lambda self: ["one"])
    monkeypatch.setattr(Subject, "sample", lambda self, index: Picture("one", Image.new("RGB", (24, 16), "teal")))
    path, kind = server.FILES["explore.js"]
    acted = tmp_path / "explore.js"
    acted.write_text(path.read_text(encoding="utf-8") + ACTS, encoding="utf-8")
    monkeypatch.setitem(server.FILES, "explore.js", (acted, kind))
    with Server([subject]) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        done = subprocess.run(
            [
                *(CHROMIUM, "--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"),
                *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000", "--dump-dom", running.url),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        running.shutdown()
        host = f"127.0.0.1:{running.server_port}"
    found = re.search(r"<title>told:(.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-500:]
    told = json.loads(html.unescape(found[1]))
    assert told["images"] == 3
    assert told["figures"] == [
        *("1, call 1 of 2", "1, call 2 of 2"),
        "3: no maps, its 110 keys form no grid",  # which only an image tells
        "4",
    ]
    assert told["canvases"] == 3 * 2
    assert told["offered"] == "mapmeanpairwiseunary"
    assert (told["kinds"], told["mean"], told["pressed"]) == (3, True, "unary")
    assert told["which"] == ["this query", "this query", "this query, unary"]
    assert told["hosts"] == [host]
    assert "is not an image that can be read here" in told["message"]
    assert told["read"].startswith("one, pixel")
