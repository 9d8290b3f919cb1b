"""Judges h2spec's report against the accepted deviations: h2spec.py REPORT ACCEPTED.

ACCEPTED has lines of a case's name as h2spec takes it (http2/6.5.3/2), a tab, and the reason. The exit code is 1 unless
exactly those fail; one with ~ before its name fails or passes with the speed of the machine.
"""

import collections
import sys
import xml.etree.ElementTree as tree

cases = collections.OrderedDict()
for suite in tree.parse(sys.argv[1]).getroot().iter("testsuite"):
    for number, case in enumerate(suite.iter("testcase"), 1):
        kind = "failed" if case.find("failure") is not None or case.find("error") is not None else "passed"
        if case.find("skipped") is not None:
            kind = "skipped"
        text = " ".join("".join(part.itertext()) for part in case).strip().replace("\n", " | ")
        cases[f'{suite.get("package")}/{number}'] = (kind, case.get("classname"), text)

lines = [line for line in open(sys.argv[2]) if line.strip() and not line.startswith("#")]
names = [line.split("\t")[0].strip() for line in lines]
accepted = {name.lstrip("~") for name in names}
counts = collections.Counter(kind for kind, _, _ in cases.values())
unknown = [name for name, (kind, _, _) in cases.items() if kind == "failed" and name not in accepted]
print("h2spec:", ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)) + f", {len(accepted)} accepted")
for name in unknown:
    print(f"{name}: {cases[name][1]}: {cases[name][2][:300]}")
settled = [name for name in names if not name.startswith("~") and cases.get(name, ("missing",))[0] != "failed"]
for name in settled:
    print(f"{name}: {cases.get(name, ('missing',))[0]} now; take it out of {sys.argv[2]}")
sys.exit(bool(unknown or settled))
