"""Write the PrometheusRule: `python -m deploy.kubernetes.generate`, in the root of the repository.

Its rules are those of deploy/prometheus; tests/contract/test_kubernetes.py holds them equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

MADE: Final = Path(__file__).parent / "base" / "prometheusrule.yaml"
RULES: Final = Path(__file__).parents[1] / "prometheus" / "slabd.rules.yml"

_HEAD: Final = """\
# Made from deploy/prometheus/slabd.rules.yml by deploy/kubernetes/generate.py; do not edit this copy.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: slabd
spec:
"""


def rendered() -> str:
    """Return the manifest: the rules as they are, indented below a head of its own."""
    rules = RULES.read_text(encoding="utf-8")
    lines = rules[rules.index("groups:") :].splitlines()
    return _HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


if __name__ == "__main__":
    MADE.write_text(rendered(), encoding="utf-8")
