"""A step of an exported run on this CPU, next to its roofline: the record that the page on the Jetson draws.

    python experiments/device.py RUN        on one thread and on all cores → records/jetson/device-RUN.json

The machine is measured before and after the model, as `measure_device` does it; the model as `bench_device` does it
on a board. Run it with nothing else on the machine. Needs the extra `export`.
"""
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import torch

from arms import RECORDS
from diffusion_lm.core import UserError, describe_machine, pick_device
from diffusion_lm.deploy.bench_device import bench_device, device_lines
from diffusion_lm.deploy.export import export_lm
from diffusion_lm.deploy.jetson import device_rows, measure_device
from diffusion_lm.files import write_json
from diffusion_lm.lm import DiffusionLM


def say(text): print(text, file=sys.stderr)

def average(before, after):
    "A device between two measurements of it"
    def middle(k): return mean(getattr(v, k) for v in (before, after))
    flops = {"fp32": mean(v.flops["fp32"] for v in (before, after))}
    name = describe_machine(pick_device("cpu"))
    return replace(before, name=name, flops=flops, bandwidth=middle("bandwidth"), overhead=middle("overhead"))

def main(*runs):
    if len(runs) != 1:
        print(__doc__)
        return 2
    load, lm = os.getloadavg()[0], DiffusionLM.from_run(runs[0], device="cpu")
    out = []
    with tempfile.TemporaryDirectory() as d:
        export_lm(lm, Path(d)/"export", int8=True)
        for threads in sorted({1, os.cpu_count()}):
            torch.set_num_threads(threads)
            before = measure_device("cpu")
            record = bench_device(Path(d)/"export", threads=threads, say=say)
            here = average(before, measure_device("cpu"))
            out.append(record | {"device": asdict(here), "load_before": load})
            print("\n".join(device_lines(record)))
            for r in device_rows(record, here):
                ratio = r["predicted"]/r["measured"]
                print(f"{here.name}, {r['precision']}, batch {r['batch']}: predicted over measured {ratio:.2f}")
    write_json(RECORDS/"jetson"/f"device-{lm.name}.json", out)

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"device.py: {e}")
