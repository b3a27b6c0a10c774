"""The policy document: schema, loading with positions, compilation into working objects, explanation in words."""
