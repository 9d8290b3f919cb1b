"""Compares two JSON reports of ginkgo, spec by spec.

REPORT                    prints how many passed, failed and were skipped
DIRECT THROUGH ACCEPTED   prints each spec that passes directly and not through crimux, or that fails through crimux alone; exit
                          code 1 if there is one
ACCEPTED has lines of a spec's name, a tab, and the reason why it may differ.
"""

import collections
import json
import sys


def specs(path):
    """The state of each spec by its whole name."""
    states = {}
    for suite in json.load(open(path)):
        for spec in suite["SpecReports"] or []:
            if spec["LeafNodeType"] == "It":
                name = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
                states[name] = (spec["State"], spec.get("Failure", {}).get("Message", ""))
    return states


def accepted(path):
    lines = [line for line in open(path) if line.strip() and not line.startswith("#")]
    return {line.rstrip("\n").split("\t")[0] for line in lines}


def differences(direct, through):
    """The name of each spec that is worse through crimux, and in which way."""
    for name, (state, _) in direct.items():
        other, message = through.get(name, ("missing", ""))
        if (state == "passed" and other != "passed") or (state == "skipped" and other == "failed"):
            yield name, f"{state} directly, {other} through crimux: {message[:1000]}"


def main():
    reports = sys.argv[1:]
    if len(reports) == 1:
        kinds = collections.Counter(state for state, _ in specs(reports[0]).values())
        print(", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds)))
        return 0
    allowed = accepted(reports[2])
    found = [(name, how) for name, how in differences(specs(reports[0]), specs(reports[1])) if name not in allowed]
    for name, how in found:
        print(f"{name}: {how}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
