"""Compute: sequences and KV blocks in, tokens out. Knows no tenants, deadlines or HTTP."""
