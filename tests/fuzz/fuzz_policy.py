"""Coverage-guided fuzzing of policies, lock files, warrants and audit logs.

    python tests/fuzz/fuzz_policy.py -max_total_time=60 corpus/

The first byte chooses the document. Nothing but the errors of trust may come out; a policy that is
accepted must decide about any subject.
"""

from __future__ import annotations

import os
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["safeweights"]):
    from safeweights.trust import LockFile, TrustError, Warrant, decide, parse_policy, verify_log
    from safeweights.trust.policies.policy import Evidence, FileFact

FILE = os.path.join(tempfile.mkdtemp(), "document")
SEEN = Evidence("a/b", {"w": FileFact("0" * 64, 1)})


def one_input(data: bytes) -> None:
    """Fail on anything but an error of trust."""
    if not data:
        return
    with open(FILE, "wb") as file:
        file.write(data[1:])
    try:
        if data[0] % 4 == 0:
            assert decide(parse_policy(data[1:]), SEEN).verdict in {"allow", "warn", "refuse"}
        elif data[0] % 4 == 1:
            LockFile(FILE).entries()
        elif data[0] % 4 == 2:
            Warrant.from_json(data[1:])
        else:
            verify_log(FILE)
    except TrustError:
        return
    except OSError:  # a key that a policy names
        assert data[0] % 4 == 0


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
