"""Judges h2spec's report against the accepted deviations: h2spec.py REPORT ACCEPTED.

ACCEPTED has lines of a case's name as h2spec takes it (http2/6.5.3/2), a tab, and the reason. A case that fails and is not
there makes the exit code 1, and is printed alone with `names` as a third argument. One that is there and passes is said.
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
accepted = {line.split("\t")[0].strip() for line in lines}
counts = collections.Counter(kind for kind, _, _ in cases.values())
unknown = [name for name, (kind, _, _) in cases.items() if kind == "failed" and name not in accepted]
if sys.argv[3:] == ["names"]:
    print("\n".join(unknown))
    sys.exit(bool(unknown))
print("h2spec:", ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)) + f", {len(accepted)} accepted")
for name in unknown:
    print(f"{name}: {cases[name][1]}: {cases[name][2][:300]}")
for name in sorted(accepted):
    if cases.get(name, ("missing",))[0] == "passed":
        print(f"{name}: passes now; take it out of {sys.argv[2]}")
sys.exit(bool(unknown))
