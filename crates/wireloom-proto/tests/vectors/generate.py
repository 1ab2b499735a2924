#!/usr/bin/env python3
"""Prints the test vectors of src/test_vectors.rs: a handshake, a data message and a cookie reply.

This is an implementation of the WireGuard paper, sections 5.4.1 to 5.4.7, that shares nothing with the crate. The
hashes are Python's. X25519 and ChaCha20-Poly1305 come from the package python3-cryptography.
"""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305


def blake2s(data):
    return hashlib.blake2s(data).digest()


def mac(key, data):
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def kdf(n, key, data):
    secret = hmac.new(key, data, hashlib.blake2s).digest()
    outputs, last = [], b""
    for i in range(1, n + 1):
        last = hmac.new(secret, last + bytes([i]), hashlib.blake2s).digest()
        outputs.append(last)
    return outputs


def aead(key, counter, plain, auth):
    return ChaCha20Poly1305(key).encrypt(struct.pack("<IQ", 0, counter), plain, auth)


def private(raw):
    return X25519PrivateKey.from_private_bytes(raw)


def public(key):
    return key.public_key().public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )


def dh(key, peer):
    return key.exchange(X25519PublicKey.from_public_bytes(peer))


def ephemeral(seed):
    """The key that the crate's generator draws: the first 32 bytes of the ChaCha20 stream with this seed as key."""
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return private(stream.update(bytes(32)))


def hchacha20(key, nonce):
    """draft-irtf-cfrg-xchacha, section 2.2."""
    state = list(struct.unpack("<4I", b"expand 32-byte k"))
    state += struct.unpack("<8I", key) + struct.unpack("<4I", nonce)

    def quarter(a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            mixed = state[z] ^ state[x]
            state[z] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for diagonal in range(4):
            quarter(
                diagonal,
                4 + (diagonal + 1) % 4,
                8 + (diagonal + 2) % 4,
                12 + (diagonal + 3) % 4,
            )
    return struct.pack("<8I", *state[:4], *state[12:])


def xaead(key, nonce, plain, auth):
    cipher = ChaCha20Poly1305(hchacha20(key, nonce[:16]))
    return cipher.encrypt(bytes(4) + nonce[16:], plain, auth)


s_i, s_r = private(b"\x01" * 32), private(b"\x02" * 32)
e_i, e_r = ephemeral(b"\x03" * 32), ephemeral(b"\x04" * 32)
psk = b"\x05" * 32
timestamp = bytes.fromhex("400000006855e40002000000")
index_i, index_r = struct.pack("<I", 0x11223344), struct.pack("<I", 0x55667788)

# 5.4.2, first message: from initiator to responder.
ck = blake2s(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
h = blake2s(ck + b"WireGuard v1 zx2c4 Jason@zx2c4.com")
h = blake2s(h + public(s_r))
[ck] = kdf(1, ck, public(e_i))
h = blake2s(h + public(e_i))
ck, key = kdf(2, ck, dh(e_i, public(s_r)))
static = aead(key, 0, public(s_i), h)
h = blake2s(h + static)
ck, key = kdf(2, ck, dh(s_i, public(s_r)))
stamp = aead(key, 0, timestamp, h)
h = blake2s(h + stamp)
initiation = b"\x01\0\0\0" + index_i + public(e_i) + static + stamp
initiation += mac(blake2s(b"mac1----" + public(s_r)), initiation)
mac1 = initiation[-16:]
initiation += bytes(16)

# 5.4.3, second message: from responder to initiator.
[ck] = kdf(1, ck, public(e_r))
h = blake2s(h + public(e_r))
[ck] = kdf(1, ck, dh(e_r, public(e_i)))
[ck] = kdf(1, ck, dh(e_r, public(s_i)))
ck, t, key = kdf(3, ck, psk)
h = blake2s(h + t)
empty = aead(key, 0, b"", h)
response = b"\x02\0\0\0" + index_r + index_i + public(e_r) + empty
response += mac(blake2s(b"mac1----" + public(s_i)), response)
response += bytes(16)

# 5.4.5 and 5.4.6, the transport keys and the initiator's second data message.
to_responder, to_initiator = kdf(2, ck, b"")
packet = bytes(range(32))
data = b"\x04\0\0\0" + index_r + struct.pack("<Q", 1) + aead(to_responder, 1, packet, b"")

# 5.4.7, the reply with a cookie to the initiation.
cookie_nonce = bytes(range(24))
cookie = mac(b"\x06" * 32, bytes([192, 0, 2, 1]) + bytes(12) + struct.pack(">H", 51820))
sealed = xaead(blake2s(b"cookie--" + public(s_r)), cookie_nonce, cookie, mac1)
reply = b"\x03\0\0\0" + index_i + cookie_nonce + sealed
mac2 = mac(cookie, initiation[:-16])

for name, value in [
    ("INITIATOR_PUBLIC", public(s_i)),
    ("RESPONDER_PUBLIC", public(s_r)),
    ("INITIATION", initiation),
    ("RESPONSE", response),
    ("TO_RESPONDER", to_responder),
    ("TO_INITIATOR", to_initiator),
    ("DATA", data),
    ("COOKIE", cookie),
    ("COOKIE_REPLY", reply),
    ("MAC2", mac2),
]:
    text = value.hex()
    lines = [text[at : at + 80] for at in range(0, len(text), 80)]
    print(f"const {name}: &str = \"\\\n     " + "\\\n     ".join(lines) + '";')
