#!/usr/bin/env python3
"""Writes the two tables of the official DAVIS tool for the recorded cases.

The figures are those that the official tool gave (`cases.json` of the expected results); the
tables are written with pandas in the tool's columns and number format ("%.3f"). Cases with a
figure are taken together as one set, in the order of their names.

Needs: pandas. Usage: make.py EXPECTED/davis/cases.json
"""

import json
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def main() -> None:
    recorded = json.loads(Path(sys.argv[1]).read_text())
    together = recorded["all_scored_cases_as_one_set"]
    columns = ["J&F_mean", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"]
    row = {}
    for column in columns:
        measure, statistic = column.split("_")
        row[f"{measure}-{statistic.capitalize()}"] = together["global"][column]
    table = pd.DataFrame([row])
    table.to_csv(HERE / "global_results-val.csv", index=False, float_format="%.3f")
    cases = {case["name"]: case for case in recorded["cases"]}
    rows = [
        {
            "Sequence": f"{name}_{one['id']}",
            "J-Mean": one["J_mean"],
            "F-Mean": one["F_mean"],
        }
        for name in sorted(together["cases"])
        for one in cases[name]["per_object"]
    ]
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "per-sequence_results-val.csv", index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
