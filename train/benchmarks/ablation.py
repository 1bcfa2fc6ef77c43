#!/usr/bin/env python3
"""Trains the rows of an ablation and scores each of them.

    python train/benchmarks/ablation.py --config configs/edge-mobilenetv2.toml \\
        --images voc/JPEGImages --backbone mobilenet_v2.safetensors --out runs \\
        --voc VOC --camvid CAMVID --davis DAVIS --seeds 0 1 --iterations 400

A row is a change of the recipe; every row is trained with every seed. What is already in --out is
not done again, so a run that was stopped goes on. Contour maps for --contours come from any
detector; contours.py in this folder makes some. Prints a Markdown table: mean over the seeds, and
the range where there are several. `conceptseg` and `conceptseg-train` are taken from --bin.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

# Name of the row, changes by key. `iterations = 0` leaves the network as it starts.
ROWS = {
    "random network": {"optimizer.iterations": 0, "head_start": "random", "backbone": None},
    "raw features": {"optimizer.iterations": 0},
    "L_s": {"loss.lambda_v": 0.0, "loss.lambda_c": 0.0},
    "L_s + L_v": {"loss.lambda_c": 0.0},
    "L_s + L_v + L_c": {},
    "footage": {"footage.max_distance": 3},
    "further views": {"views.extra": 2},
    "mean teacher": {"teacher.momentum": 0.99},
    "memory of 8": {"memory_batches": 8},
    "64 dimensions": {"network.dim": 64},
    "128 dimensions": {"network.dim": 128},
}
# The rows that need contours or ids beside the images come with --contours.
CONTOURS = {"segments.source": "contours"}


def dumps(table, prefix=""):
    """TOML of what `conceptseg-train config` prints: nested tables of plain values."""
    plain = {k: v for k, v in table.items() if not isinstance(v, dict)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in plain.items()]
    if prefix and lines:
        lines.insert(0, f"[{prefix}]")
    for key, value in table.items():
        if isinstance(value, dict):
            lines.append(dumps(value, f"{prefix}.{key}" if prefix else key))
    return "\n".join(lines)


def run(command, log):
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, check=False)
    if done.returncode:
        sys.exit(f"ablation: `{' '.join(map(str, command))}` failed; see {log}")
    return done.stdout


def train(args, name, changes, seed, folder):
    bundle = folder / "bundle"
    if (bundle / "bundle.toml").is_file():
        return bundle
    folder.mkdir(parents=True, exist_ok=True)
    trainer = args.bin / "conceptseg-train"
    recipe = tomllib.loads(run([trainer, "config", args.config], folder / "log.txt"))
    recipe["seed"], recipe["name"] = seed, name
    recipe["optimizer"]["iterations"] = args.iterations
    backbone = args.backbone
    for key, value in changes.items():
        if key == "backbone":
            backbone = value
            continue
        *path, last = key.split(".")
        table = recipe
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    file = folder / "recipe.toml"
    file.write_text(dumps(recipe), encoding="utf-8")
    command = [trainer, "train", "--config", file, "--out", bundle, "--device", args.device]
    command += ["--images", *args.images] + (["--backbone", backbone] if backbone else [])
    log = folder / "bundle-log"
    command += ["--resume"] if (log / "checkpoint.safetensors").is_file() else []
    run(command, folder / "log.txt")
    return bundle


def scores(args, bundle, folder):
    """Figures of a bundle by column, each from a JSON file that is kept."""
    found = {}
    program = args.bin / "conceptseg"
    for column, wanted, options, value in [
        ("VOC mIoU", args.voc, ["voc", "--limit", "400", "--cluster", "grid"], lambda d: 100 * d["miou"]["mean_present"]),
        ("CamVid mIoU", args.camvid, ["camvid", "--cluster", "grid"], lambda d: 100 * d["miou"]["mean_present"]),
        ("pure concepts %", args.voc, ["concepts", "--data", "voc"], lambda d: 100 * d["purity"]["above_80"]),
        ("purity", args.voc, ["concepts", "--data", "voc"], lambda d: 100 * d["purity"]["mean_weighted"]),
        ("J&F", args.davis, ["davis"], lambda d: 50 * (d["global"]["j_mean"] + d["global"]["f_mean"])),
    ]:
        if wanted is None:
            continue
        file = folder / f"{options[0]}.json"
        if not file.is_file():
            command = [program, "--json", "eval", options[0], "--bundle", bundle, "--root", wanted]
            text = run(command + options[1:], folder / "log.txt")
            file.write_text(text, encoding="utf-8")
        found[column] = value(json.loads(file.read_text(encoding="utf-8")))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--images", nargs="+", required=True, help="as of conceptseg-train train")
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--contours", type=Path, help="folder of contour maps, for rows with them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bin", type=Path, default=Path("target/release"))
    parser.add_argument("--voc", type=Path)
    parser.add_argument("--camvid", type=Path)
    parser.add_argument("--davis", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help=", ".join(ROWS))
    args = parser.parse_args()
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.error(f"no row is named {unknown[0]!r}; there are {', '.join(ROWS)}")
    rows = {name: ROWS[name] for name in args.rows}
    if args.contours:
        contours = CONTOURS | {"segments.folder": str(args.contours)}
        rows |= {f"{name}, contours": ROWS[name] | contours for name in args.rows if name.startswith("L_s")}

    table = {}
    for seed in args.seeds:
        for name, changes in rows.items():
            folder = args.out / name.replace(" ", "-").replace("+", "and") / f"seed-{seed}"
            bundle = train(args, name, changes, seed, folder)
            for column, value in scores(args, bundle, folder).items():
                table.setdefault(name, {}).setdefault(column, []).append(value)
            print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    columns = list(next(iter(table.values()), {}))
    print("| |" + "".join(f" {column} |" for column in columns))
    print("|---|" + "---|" * len(columns))
    for name, values in table.items():
        cells = []
        for column in columns:
            all_seeds = values[column]
            text = f"{statistics.mean(all_seeds):.1f}"
            if len(all_seeds) > 1:
                text += f" ({min(all_seeds):.1f} to {max(all_seeds):.1f})"
            cells.append(text)
        print(f"| {name} |" + "".join(f" {cell} |" for cell in cells))


if __name__ == "__main__":
    main()
