"""Hold a report on real data to what the README promises. Exits non-zero if it fails."""

import json
import sys

EXPECTED_RATIO = 50
LAW_TOLERANCE = 1e-9


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        report = json.load(file)
    rows = report["rows"]
    bitwise = {(row["model"], row["label"]) for row in report["function"] if row["bitwise"]}
    traces = [row for row in rows if row["measure"] == "hessian_trace"]
    inflated = [
        row
        for row in traces
        if (row["model"], row["label"]) in bitwise and row["ratio"] > EXPECTED_RATIO
    ]
    assert inflated, "no bitwise map inflated the trace"
    for top in inflated:
        for name in ("relative_flatness", "pair_proxy"):
            (same,) = [
                row
                for row in rows
                if (row["measure"], row["model"], row["label"])
                == (name, top["model"], top["label"])
            ]
            assert same["verdict"] == "invariant", same
    for row in traces:
        if row["predicted"] is not None:
            error = abs(row["after"] - row["predicted"]) / abs(row["predicted"])
            assert error < LAW_TOLERANCE, row
    assert all(row["labels_changed"] == 0 for row in report["function"])
    assert all(row["verdict"] != "contradicts" for row in rows)
    print(f"report accepted: {len(rows)} cells, trace inflated by {inflated[0]['ratio']:.4g}")


if __name__ == "__main__":
    main(sys.argv[1])
