"""Compares two JSON reports of ginkgo, spec by spec.

count REPORT                     prints how many passed, failed and were skipped
differ DIRECT THROUGH ACCEPTED   prints each spec that passes directly and not through crimux; exit code 1 if there is one
focus DIRECT THROUGH ACCEPTED    prints a regular expression of those specs
ACCEPTED has lines of a spec's name, a tab, and the reason why it may differ.
"""

import collections
import json
import re
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


def differences(direct, through, allowed):
    for name, (state, _) in direct.items():
        other, message = through.get(name, ("missing", ""))
        if state == "passed" and other != "passed" and name not in allowed:
            yield name, other, message


def main():
    verb, *paths = sys.argv[1:]
    if verb == "count":
        kinds = collections.Counter(state for state, _ in specs(paths[0]).values())
        print(", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds)))
        return 0
    found = list(differences(specs(paths[0]), specs(paths[1]), accepted(paths[2])))
    if verb == "focus":
        print("|".join(re.escape(name) for name, _, _ in found))
        return 0
    for name, state, message in found:
        print(f"{name}: passes directly, {state} through crimux: {message[:1000]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
