import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from sdr_lightning.identity import sha256, stable_hash, stable_hashes


def test_hashes_never_change():
    # Banks and noise on disk depend on them: a new value here makes every one of them stale.
    assert stable_hash("caption", 7) == -3912880260230685041
    assert stable_hashes(("image", "scenes"), ["a", "b"]).tolist() == [
        6507877935663465929,
        4020882600160806980,
    ]
    assert sha256("a", b"b") == "023b8059a924f728a2155e4cc8b907389b6468b5ffba4905e3588ebe872d62d2"


def test_hashes_do_not_depend_on_the_process():
    code = "from sdr_lightning.identity import *; print(stable_hash('a', 1), sha256('a', b'1'))"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        assert output.stdout.decode().split() == [str(stable_hash("a", 1)), sha256("a", b"1")]


def test_a_hash_is_a_signed_64_bit_number():
    hashes = [stable_hash("item", i) for i in range(200)]
    assert len(set(hashes)) == 200
    assert min(hashes) < 0 < max(hashes)
    assert np.array(hashes, dtype=np.int64).tolist() == hashes
    assert np.median(np.abs(hashes)) > 2**60


@pytest.mark.parametrize(
    ("first", "second"), [(("a", "b"), ("b", "a")), (("ab", "c"), ("a", "bc")), (("a",), ("a", ""))]
)
def test_order_and_boundaries_of_the_parts_count(first, second):
    assert stable_hash(*first) != stable_hash(*second)
    assert sha256(*first) != sha256(*second)


def test_many_hashes_are_the_single_ones():
    items = ["a", "", "ünï", "a\nb", "7"]
    for prefix in (("noise", 3), ("",), (1, 2, 3)):
        hashes = stable_hashes(prefix, iter(items))
        assert hashes.dtype == np.int64
        assert hashes.tolist() == [stable_hash(*prefix, item) for item in items]
    assert stable_hashes(("x",), []).shape == (0,)


def test_sha256_takes_text_and_bytes():
    assert sha256("ü") == sha256("ü".encode())
    assert sha256("a", "b") == hashlib.sha256(b"a\x1fb\x1f").hexdigest()
    assert sha256() == hashlib.sha256(b"").hexdigest()
