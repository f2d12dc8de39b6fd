"""The dashboards, as Python that makes plain JSON: `python -m deploy.grafana.generate` writes it."""
