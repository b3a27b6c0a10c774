"""Names, stamps and, later, spans and metrics. The only package that may import opentelemetry."""
