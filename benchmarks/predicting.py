"""Peak memory of predicting one image whole, process and weights included, each network in a process of its own.

    python benchmarks/predicting.py [--size 1024x2048] [NAME ...]

Weights are random: what they are costs nothing. Processor time is that of one thread.
"""

import argparse
import json
import subprocess
import sys

NAMES = [f"{head}_resnet50_d8" for head in ("nonlocal", "dnl", "danet", "psanet", "ann", "ccnet")]
PROGRAM = """
import json, resource, sys, time
import torch
import lookfar
from lookfar.networks import predict
torch.set_num_threads(1)
network = lookfar.create_network(sys.argv[1], 19).eval()
image = torch.randint(0, 256, (3, int(sys.argv[2]), int(sys.argv[3])), dtype=torch.uint8)
def peak():  # of this program alone: what fork left of its parent counts in ru_maxrss
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 2**20
before, start = peak(), time.process_time()
labels = predict(network, image)
assert labels.shape == image.shape[1:]
print(json.dumps([before, peak(), time.process_time() - start]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--size", default="1024x2048", help="height x width")
    args = parser.parse_args()
    print("| network | weights and torch, GiB | at its peak, GiB | seconds of a core |\n| --- | --- | --- | --- |")
    for name in args.names:
        command = [sys.executable, "-c", PROGRAM, name, *args.size.split("x")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| `{name}` | {done.stderr.strip().splitlines()[-1]} | | |", flush=True)
            continue
        before, peak, seconds = json.loads(done.stdout)
        print(f"| `{name}` | {before:.2f} | {peak:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
