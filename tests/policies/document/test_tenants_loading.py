import pytest

from policies.document.problems import PolicyError
from policies.document.tenants import KeyRing, digest, load_tenants

A, B = digest("fl-a"), digest("fl-b")
VALID = f"""version: 1
tenants:
  - name: acme
    tier: paid
    weight: 2
    keys:
      - {{id: k1, sha256: {A}}}
      - {{id: k2, sha256: {B}, revoked: true}}
  - name: other
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: other", "name: acme", '9:11: tenants[acme].name: the tenant "acme" is here twice, first at 3:11'),
        ("id: k2", "id: k1", '8:14: tenants[acme].keys[k1].id: the key id "k1" is here twice, first at 7:14'),
        (B, A, f'8:26: tenants[acme].keys[k2].sha256: the digest "{A}" is here twice, first at 7:26'),
        (B, "abc", '8:26: tenants[acme].keys[k2].sha256: the text "abc" does not fit; allowed: 64 hexadecimal digits'),
        (
            "weight: 2",
            "weight: 1.0e+10",
            "weight: 1.0e+10 is out of bounds; allowed: a number, above 0 and at most 1e+09",
        ),
        ("tier: paid", f"tier: {'x' * 257}", "allowed: text of at most 256 characters"),
        ("weight: 2", "weight: 0", "5:13: tenants[acme].weight: 0 is out of bounds; allowed: a number, above 0"),
        ("tier:", "teir:", 'tenants[acme]: unknown key "teir"; allowed: name, tier, weight, classes, keys; did you'),
        (
            "tenants:",
            "tenant:",
            '2:1: document: unknown key "tenant"; allowed: version, tenants; did you mean "tenants"',
        ),
    ],
)
def test_a_damaged_tenants_file_says_where_and_what(old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(PolicyError) as caught:
        load_tenants(VALID.replace(old, new).encode(), "t.yaml")
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_key_opens_its_tenant() -> None:
    ring = KeyRing(load_tenants(VALID.encode()))
    found = ring.find("fl-a")
    assert found is not None
    tenant, key = found
    assert (tenant.name, tenant.tier, tenant.weight, key.id, key.project) == ("acme", "paid", 2.0, "k1", "default")


def test_a_revoked_key_opens_nothing_and_is_told_from_an_unknown_one() -> None:
    ring = KeyRing(load_tenants(VALID.encode()))
    assert ring.find("fl-b") is None
    assert ring.is_revoked("fl-b")
    assert not ring.is_revoked("fl-a")
    assert ring.find("fl-c") is None
    assert not ring.is_revoked("fl-c")


@pytest.mark.parametrize("secret", ["", A, "\ud800", "x" * 10_000])
def test_no_other_text_opens_anything(secret: str) -> None:
    assert KeyRing(load_tenants(VALID.encode())).find(secret) is None
