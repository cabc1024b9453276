"""Policies to start from: what `safeweights policy new` writes, and ``docs/policy.md`` explains.

Every one is complete: with the key and certificate files that it names, it can be used as it is.
"""

from __future__ import annotations

from typing import Final

__all__ = ["STARTERS"]

_LAB: Final = """\
# A lab: models of the team are signed by its key, those under scratch/ are not checked.
# Names are paths below the folder of this file. The first rule that matches decides.
lock = "models.lock.json"        # releases accepted before; an older one is refused

[signers.team]
public_key = "team.pub"          # from `safeweights keygen`; keep this file where only you can write

[[rules]]
pattern = "scratch/*"            # `*` also matches `/`
level = "none"                   # only the deny rules apply: nothing that runs code

[[rules]]
pattern = "*"
signers = ["team"]
"""

_GATE: Final = """\
# A platform gate: only releases get in, only these types of files, nothing that was revoked.
minimum_level = "signed"         # no rule below can ask for less
lock = "models.lock.json"

[signers.releases]
public_key = "releases.pub"

[signers.pipeline]               # a Sigstore identity: the workflow, and who vouches for it
identity = "https://github.com/org/models/.github/workflows/release.yml@refs/heads/main"
issuer = "https://token.actions.githubusercontent.com"

[[rules]]
pattern = "prod/*"
signers = ["releases", "pipeline"]
minimum_release = 3
allow = ["*.safetensors", "*.json", "*.txt", "LICENSE", "README.md"]
optional = ["README.md"]         # may be missing although it is signed

[revoked]
keys = []                        # hints: SHA-256 of the PEM, as `safeweights keygen` prints them
files = []                       # SHA-256 of the contents
root_digests = []                # of signed statements, as `safeweights digest` prints them
"""

_MIRROR: Final = """\
# A mirror of a vendor's models. Signatures are kept beside the mirror, not in it.
lock = "mirror.lock.json"
root = "mirror"                  # models are named relative to this folder

[signers.vendor]
roots = "vendor-ca.pem"
certificate_subject = "CN=releases,O=Example"

[[rules]]
pattern = "vendor/*"
signers = ["vendor"]
signature = "signatures/{subject}.oms.sig"   # of vendor/m: signatures/vendor/m.oms.sig

# Nothing else is in the mirror: what no rule matches is refused.
"""

_FIRST_USE: Final = """\
# First use: what is seen for the first time is accepted and remembered, and refused once it changed.
# Review the lock file and keep it under version control. To accept a change, delete its entry.
lock = "models.lock.json"

[[rules]]
pattern = "*"
level = "known"
first_use = true

[deny]                           # everything that can run code is denied, unless it is false here
python = true
"""

_AIR_GAP: Final = """\
# An air gap: what was carried in is what was approved, digest by digest. Nothing is asked of a network.

[signers.approvers]
public_key = "approvers.pub"

[[rules]]                        # signed once, by the approvers, for exactly this content
pattern = "approved/base"
signers = ["approvers"]
models = ["org/base"]            # the id that was signed: `safeweights sign --id org/base`
root_digests = ["{root_digest}"]

[[rules]]                        # not signed: every file is pinned
pattern = "approved/adapter"
level = "pinned"

[rules.digests]
"adapter.safetensors" = "{adapter_digest}"
"""

STARTERS: Final = {
    "lab": _LAB,
    "gate": _GATE,
    "mirror": _MIRROR,
    "first-use": _FIRST_USE,
    "air-gap": _AIR_GAP.replace("{root_digest}", "0" * 64).replace("{adapter_digest}", "0" * 64),
}
"""Name of each worked policy -> its text."""
