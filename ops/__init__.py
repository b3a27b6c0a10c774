"""Deployment, benchmarks and images."""
