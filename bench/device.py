"""A step of an exported run on this CPU beside its roofline: the record that the page on the Jetson draws.

    python bench/device.py RUN        → bench/records/device-RUN.json

The machine is measured before and after the model, as `measure_device` does it; the model as `bench_device` does it on a board. Run it
with nothing else on the machine. Needs the extra `export`.
"""
import os, sys, tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

from diffusion_lm.bench_device import bench_device, device_lines
from diffusion_lm.core import UserError, describe_machine, pick_device, write_json
from diffusion_lm.export import export_lm
from diffusion_lm.jetson import device_rows, measure_device
from diffusion_lm.lm import DiffusionLM

def main(*runs):
    if len(runs) != 1: print(__doc__); return 2
    load, lm = os.getloadavg()[0], DiffusionLM.from_run(runs[0], device="cpu")
    with tempfile.TemporaryDirectory() as d:
        export_lm(lm, Path(d)/"export", int8=True)
        before = measure_device("cpu")
        record = bench_device(Path(d)/"export", say=lambda s: print(s, file=sys.stderr))
        after = measure_device("cpu")
    here = replace(before, name=describe_machine(pick_device("cpu")), flops={"fp32": mean(v.flops["fp32"] for v in (before, after))},
                   bandwidth=mean(v.bandwidth for v in (before, after)), overhead=mean(v.overhead for v in (before, after)))
    write_json(Path(__file__).parent/"records"/f"device-{lm.name}.json", record | {"device": asdict(here), "load_before": load})
    print("\n".join(device_lines(record)))
    for r in device_rows(record, here): print(f"{r['precision']} batch {r['batch']}: predicted over measured {r['predicted']/r['measured']:.2f}")

if __name__ == "__main__":
    try: sys.exit(main(*sys.argv[1:]))
    except UserError as e: sys.exit(f"device.py: {e}")
